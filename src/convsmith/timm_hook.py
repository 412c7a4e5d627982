"""Make convsmith's models known to timm at the moment timm is imported, and not before.

``import convsmith`` must stay light, and ``timm.create_model("cs_resnet20")`` must work after it. An import finder
that looks for the one name ``timm`` satisfies both: it changes nothing in timm, it only imports ``convsmith.models``
(which uses timm's own decorator) once timm has finished loading.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _TimmFinder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def then_ours(module: ModuleType) -> None:
                execute(module)
                importlib.import_module("convsmith.models")

            spec.loader.exec_module = then_ours  # type: ignore[method-assign]  # of this one loader, used once
        return spec


def install() -> None:
    """Register our models now if timm is loaded already, else as soon as it is."""
    if "timm" in sys.modules:
        importlib.import_module("convsmith.models")
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())
