"""Two data sets with common classes: a labelled source with many, a target with fewer, brought to one form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from convsmith.arguments import checked, one_of
from convsmith.data.classes import ClassSpec, chosen_classes
from convsmith.data.loading import checked_size, load
from convsmith.data.split import ImageData, Size
from convsmith.errors import InvalidArgument, close_matches


@dataclass(frozen=True, eq=False)
class DomainPair:
    """A source and a target whose labels count the source's classes; ``shared`` are the classes the target has
    (empty for a target without labels).
    """

    source: ImageData
    target: ImageData
    shared: tuple[int, ...]


@checked
def pair(
    source: str | ImageData,
    target: str | ImageData,
    *,
    target_classes: ClassSpec | None = None,
    size: int | Size | None = None,
    channels: int | None = None,
    seed: int = 0,
    normalise: str = "source",
    crop: tuple[int | None, int | None] = (None, None),
) -> DomainPair:
    """Load two domains at one size and one number of channels, with the target cut to some classes.

    Args:
        source: spec of the labelled domain, or data already loaded.
        target: spec of the other domain, or data already loaded.
        target_classes: which of the source's classes the target keeps (see `chosen_classes`); None keeps all it has.
        size: of both; None is the smaller of the two native sizes (detail can be averaged away but not invented).
        channels: of both; None is the source's.
        seed: key of the divisions.
        normalise: "source" normalises both domains by the source's mean and std, as a network trained on the source
            expects; "own" each by its own, which removes differences of brightness and contrast between the domains.
        crop: windows cut around the ink of source and target images before resizing; 20 for MNIST makes it comparable
            with digits that fill their image, such as the UCI ones.

    Classes are matched by name; a target without classes (``images:PATH``) keeps all its images, with labels
    -1. Images of other target classes are left out, whatever their split.

    Raises:
        InvalidArgument: a class chosen that source or target lacks; no common class; data already loaded at another
            size or number of channels than asked for.

    Examples:
        >>> domains = pair("mnist-5k", "digits", target_classes="0-4", size=16)
    """
    one_of("normalise", normalise, ("source", "own"))
    final, sides = checked_size(size), list(zip((source, target), crop, strict=True))
    found = [_loaded(side, final, channels, seed, window) for side, window in sides]
    if final is None:
        final = min((data.description.size for data in found), key=lambda s: (s[0] * s[1], s))
    channels = channels or found[0].description.channels
    for number, (side, window) in enumerate(sides):
        about = found[number].description
        if (about.size, about.channels) == (final, channels):
            continue
        if not isinstance(side, str):
            rule = "data already loaded must have the common size and channels"
            argument = f"{final[0]} x {final[1]} with {channels} channels"
            given = f"{about.name}: {about.size}, {about.channels} channels"
            hint = "pass its spec, or load it with size= and channels="
            raise InvalidArgument(rule, argument=argument, given=given, hint=hint)
        found[number] = load(side, size=final, channels=channels, seed=seed, crop=window)
    left, right = found
    shared = _shared(left.classes, right.classes, target_classes)
    kept = torch.tensor([*shared] if right.classes else [-1])
    right = right.renumbered([left.classes.index(n) if n in left.classes else -1 for n in right.classes], left.classes)
    right = right.map(**{n: split.subset(torch.isin(split.labels, kept)) for n, split in right.splits.items()})
    if normalise == "source":
        right = right.with_normalisation(left.description.mean, left.description.std)
    return DomainPair(left, right, shared)


def _loaded(side: str | ImageData, size: Size | None, channels: int | None, seed: int, crop: int | None) -> ImageData:
    if isinstance(side, str):
        return load(side, size=size, channels=channels, seed=seed, crop=crop)
    if crop is not None:
        raise InvalidArgument("crop needs a spec, not data already loaded", argument="crop", given=crop)
    return side


def _shared(source: Sequence[str], target: Sequence[str], spec: ClassSpec | None) -> tuple[int, ...]:
    """Return the classes of the target in the source's numbering."""
    if spec is None:
        unknown = [name for name in target if name not in source]
        if unknown:
            given = f"the source lacks {', '.join(unknown)}"
            hint = f"choose among them with target_classes; {close_matches(unknown[0], source)}"
            rule = "the source must have every class of the target"
            raise InvalidArgument(rule, argument=f"target classes {', '.join(target)}", given=given, hint=hint)
        return tuple(n for n, name in enumerate(source) if name in target)
    shared = chosen_classes(spec, source)
    missing = [source[n] for n in shared if source[n] not in target]
    if missing:
        rule, hint = "the target lacks a class that was chosen", close_matches(missing[0], target)
        raise InvalidArgument(rule, argument=f"target_classes={spec!r}", given=", ".join(missing), hint=hint)
    return shared
