"""convsmith: make a convolutional vision network leaner, sharper, explainable and portable.

Public names resolve on first use, so ``import convsmith`` loads neither torch nor timm. Our model names become known to
timm as soon as timm itself is imported (see ``convsmith.timm_hook``).
"""

from __future__ import annotations

import importlib
from typing import Any

from convsmith import timm_hook
from convsmith.version import __version__

_ROOMS = (
    "adaptation",
    "compression",
    "data",
    "errors",
    "inspection",
    "interpretation",
    "models",
    "pooling",
    "registry",
    "report",
    "training",
)
_NAMES = {"ConvsmithError": "errors", "load": "models.storage"}

__all__ = ["ConvsmithError", "__version__", "load", *_ROOMS]  # noqa: PLE0604


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"convsmith.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(f"convsmith.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'convsmith' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)


timm_hook.install()
