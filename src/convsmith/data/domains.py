"""Two data sets with common classes: a labelled source with many, a target with fewer, brought to one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from convsmith.data.classes import ClassSpec, chosen_classes
from convsmith.data.image_data import ImageData
from convsmith.data.loading import checked_size, load
from convsmith.data.store import Size
from convsmith.errors import InvalidArgument, close_matches


@dataclass(frozen=True, eq=False)
class DomainPair:
    """A source and a target whose labels count the source's classes; ``shared`` are the classes the target has
    (empty for a target without labels).
    """

    source: ImageData
    target: ImageData
    shared: tuple[int, ...]


def pair(
    source: str | ImageData,
    target: str | ImageData,
    *,
    target_classes: ClassSpec | None = None,
    size: int | Size | None = None,
    channels: int | None = None,
    seed: int = 0,
    augment: str = "none",
    normalise: str = "source",
    crop: tuple[int | None, int | None] = (None, None),
    broken: str = "refuse",
    root: str | Path | None = None,
) -> DomainPair:
    """Load two domains at one size and one number of channels, with the target cut to some classes.

    Args:
        source: spec of the labelled domain, or data already loaded.
        target: spec of the other domain, or data already loaded.
        target_classes: which of the source's classes the target keeps (see `chosen_classes`): "0-4", "3,5,7", names,
            "first-5", "random-5@1"; None keeps all that the target has.
        size: of both; None is the smaller of the two native sizes (detail can be averaged away but not invented).
        channels: of both; None is the source's.
        seed: key of the divisions.
        augment: of the train splits of both.
        normalise: "source" normalises both domains by the source's mean and std, as a network trained on the source
            expects; "own" each by its own, which removes differences of brightness and contrast between the domains.
        crop: windows cut around the ink of source and target images before resizing; 20 for MNIST makes it comparable
            with digits that fill their picture, such as the UCI ones.
        broken: see `load`.
        root: see `load`.

    Classes are matched by name; a target without classes (``images:PATH``) keeps all its images, with labels
    -1. Images of other target classes are left out, whatever their split.

    Raises:
        InvalidArgument: a class chosen that source or target lacks; no common class; data already loaded at another
            size or number of channels than asked for.
    """
    if normalise not in ("source", "own"):
        raise InvalidArgument(
            "both by the source's statistics, or each by its own", argument="normalise", given=normalise
        )
    wanted = checked_size(size)
    common: dict[str, Any] = {"seed": seed, "augment": augment, "broken": broken, "root": root}
    left, right = (
        _loaded(side, wanted, channels, window, common) for side, window in zip((source, target), crop, strict=True)
    )
    final = wanted or min(left.description.size, right.description.size, key=lambda s: (s[0] * s[1], s))
    count = channels or left.description.channels
    left, right = (
        _brought(side, data, final, count, window, common)
        for side, data, window in zip((source, target), (left, right), crop, strict=True)
    )
    shared = _shared(left.classes, right.classes, target_classes)
    right = _renumbered(right, left.classes, shared)
    if normalise == "source":
        right = right.with_normalisation(left.description.mean, left.description.std)
    return DomainPair(left, right, shared)


def _loaded(
    side: str | ImageData, size: Size | None, channels: int | None, crop: int | None, common: dict[str, Any]
) -> ImageData:
    if isinstance(side, ImageData):
        if crop is not None:
            raise InvalidArgument("crop needs a spec, not data already loaded", argument="crop", given=crop)
        return side
    return load(side, size=size, channels=channels, crop=crop, **common)


def _brought(
    side: str | ImageData, data: ImageData, size: Size, channels: int, crop: int | None, common: dict[str, Any]
) -> ImageData:
    """Return ``data`` at this size and number of channels, loading it once more if it is not."""
    if (data.description.size, data.description.channels) == (size, channels):
        return data
    if isinstance(side, ImageData):
        raise InvalidArgument(
            "data already loaded must have the common size and channels",
            argument=f"{size[0]} x {size[1]} with {channels} channels",
            given=f"{data.description.name}: {data.description.size}, {data.description.channels} channels",
            hint="pass its spec, or load it with size= and channels=",
        )
    return load(side, size=size, channels=channels, crop=crop, **common)


def _shared(source: Sequence[str], target: Sequence[str], spec: ClassSpec | None) -> tuple[int, ...]:
    """Return the classes of the target in the source's numbering."""
    if not target and spec is None:
        return ()
    if spec is None:
        unknown = [name for name in target if name not in source]
        if unknown:
            raise InvalidArgument(
                "the source must have every class of the target",
                argument=f"target classes {', '.join(target)}",
                given=f"the source lacks {', '.join(unknown)}",
                hint=f"choose among them with target_classes; {close_matches(unknown[0], source)}",
            )
        shared = tuple(n for n, name in enumerate(source) if name in target)
    else:
        shared = chosen_classes(spec, source)
        missing = [source[n] for n in shared if source[n] not in target]
        if missing:
            raise InvalidArgument(
                "the target lacks a class that was chosen",
                argument=f"target_classes={spec!r}",
                given=", ".join(missing),
                hint=close_matches(missing[0], target),
            )
    return shared


def _renumbered(data: ImageData, classes: tuple[str, ...], shared: tuple[int, ...]) -> ImageData:
    """Return the target with labels of the source's numbering, and images of shared classes only."""
    if not data.classes:
        return data.map(**{name: split.with_labels(split.labels, classes) for name, split in data.splits.items()})
    number = torch.tensor([classes.index(n) if n in classes else -1 for n in data.classes])
    keep = torch.isin(number, torch.tensor(shared))
    splits = {}
    for name, split in data.splits.items():
        kept = split.subset(keep[split.labels])
        splits[name] = kept.with_labels(number[kept.labels], classes)
    return data.map(**splits)
