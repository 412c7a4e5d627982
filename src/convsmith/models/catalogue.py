"""The list behind ``convsmith models``: every name timm knows, ours first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import timm
import torch
from timm.models import model_entrypoint

from convsmith.errors import InvalidArgument, close_matches

OURS = "convsmith.models."


@dataclass(frozen=True)
class ModelRow:
    """One model: its name, whether it is ours, its family, its parameters (None if not counted), one line on it."""

    name: str
    ours: bool
    family: str
    params: int | None
    summary: str


def list_models(
    pattern: str = "*",
    *,
    ours_only: bool = False,
    count: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> list[ModelRow]:
    """List the models whose name matches a shell pattern, ours first.

    Args:
        pattern: ``*`` and ``?`` as in a shell; a plain word matches anywhere in the name.
        ours_only: leave out timm's own.
        count: build each model on the meta device (no memory, some milliseconds each) and count its parameters.
        progress: called after each model when counting.

    Raises:
        InvalidArgument: no name matches; offers close ones.
    """
    known = timm.list_models()
    shape = pattern if any(c in pattern for c in "*?[") else f"*{pattern}*"
    names = timm.list_models(shape)
    rows = [_row(name) for name in names]
    rows = sorted((r for r in rows if r.ours or not ours_only), key=lambda r: (not r.ours, r.name))
    if not rows:
        raise InvalidArgument(
            "no model matches", asked="models", given=repr(pattern), mend=close_matches(pattern.strip("*"), known)
        )
    if not count:
        return rows
    counted = []
    for done, row in enumerate(rows, 1):
        counted.append(ModelRow(row.name, row.ours, row.family, count_parameters(row.name), row.summary))
        if progress is not None:
            progress(done, len(rows), row.name)
    return counted


def count_parameters(name: str) -> int:
    """Return the number of parameters of a model with its default arguments."""
    with torch.device("meta"):
        model = timm.create_model(name)
    return sum(p.numel() for p in model.parameters())


def _row(name: str) -> ModelRow:
    entry = model_entrypoint(name)
    lines = (entry.__doc__ or "").strip().splitlines()
    return ModelRow(
        name, entry.__module__.startswith(OURS), entry.__module__.rsplit(".", 1)[-1], None, lines[0] if lines else ""
    )
