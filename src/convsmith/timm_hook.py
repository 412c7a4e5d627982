"""Make convsmith's models known to timm at the moment timm is imported, and not before.

``import convsmith`` must stay light, and ``timm.create_model("cs_resnet20")`` must work after it. An import finder
that looks for the one name ``timm`` satisfies both: it changes nothing in timm, it only imports ``convsmith.models``
(which uses timm's own decorator) once timm has finished loading.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


class _AfterTimm(Loader):
    def __init__(self, loader: Any) -> None:
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        module.__loader__ = self.loader
        self.loader.exec_module(module)
        importlib.import_module("convsmith.models")


class _TimmFinder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if fullname != "timm":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _AfterTimm(spec.loader)
        return spec


def install() -> None:
    """Register our models now if timm is loaded already, else as soon as it is."""
    if "timm" in sys.modules:
        importlib.import_module("convsmith.models")
    elif not any(isinstance(finder, _TimmFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _TimmFinder())
