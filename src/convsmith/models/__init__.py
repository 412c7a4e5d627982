"""Whole networks, registered with timm's own decorator, one file per family; loading and saving of any network."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from convsmith.models import attached as attached
from convsmith.models import igcv1 as igcv1
from convsmith.models import igcv2 as igcv2
from convsmith.models import igcv3 as igcv3
from convsmith.models import lean_controls as lean_controls
from convsmith.models import lenet as lenet
from convsmith.models import merge_run as merge_run
from convsmith.models import residual as residual
from convsmith.models import second_order as second_order

if TYPE_CHECKING:  # the reference pages and type checkers read the names here
    from convsmith.models.storage import LoadedModel, ModelRecipe, load_model, save_model

__all__ = ["LoadedModel", "ModelRecipe", "load_model", "save_model"]


def __getattr__(name: str) -> Any:
    # timm imports this room while it is loading itself; reading and writing files can wait
    if name in __all__:
        return getattr(importlib.import_module("convsmith.models.storage"), name)
    raise AttributeError(f"module 'convsmith.models' has no attribute {name!r}")
