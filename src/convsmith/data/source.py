"""What a source of images hands over, and the registry of sources.

A source is a function of a `Request` registered under the word before the colon of a spec (`digits`,
`imagefolder:PATH`). It returns a `Material`: images and labels as they are, not yet divided, resized or normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from convsmith.data.partition import TRAIN
from convsmith.registry import Registry

#: called with pictures done, pictures in all, and what is being done
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Request:
    """What `load` was asked for: the part of the spec after the colon, and the arguments that a source may need."""

    spec: str
    argument: str
    root: Path | None
    broken: str
    channels: int | None
    progress: Progress | None = None


@dataclass(frozen=True)
class BrokenFile:
    """An image file that cannot be read, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Pictures:
    """Images that are decoded when asked for: ``decode(n)`` gives uint8 [C, h, w]; ``names`` are for messages.

    ``size`` is (height, width) if all pictures are known to share one, else None.
    """

    decode: Callable[[int], Tensor]
    names: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None


@dataclass(frozen=True, eq=False)
class Material:
    """A data set as its source gives it.

    Shapes: ``images`` a uint8 or float32 tensor [N, C, H, W] or `Pictures` of length N; ``labels`` [N] int64, -1 where
    unknown; ``official`` [N] from `convsmith.data.partition` (all TRAIN if the source does not divide); ``copies`` [N]
    (see `partition.copies`); ``index`` [N] int64, unique.
    """

    name: str
    classes: tuple[str, ...]
    images: Tensor | Pictures
    labels: Tensor
    copies: Tensor
    source: str
    official: Tensor | None = None
    index: Tensor | None = None
    skipped: tuple[BrokenFile, ...] = ()
    notes: tuple[str, ...] = ()

    def division(self) -> Tensor:
        """Return ``official``, or all TRAIN."""
        return torch.full_like(self.labels, TRAIN) if self.official is None else self.official

    def numbers(self) -> Tensor:
        """Return ``index``, or 0..N-1."""
        return torch.arange(len(self.labels)) if self.index is None else self.index


#: traits: ``takes`` (what stands after the colon, or None), ``extra``, and what `summary` shows without loading
SOURCES: Registry[Callable[[Request], Material]] = Registry("data set", "convsmith.data")
