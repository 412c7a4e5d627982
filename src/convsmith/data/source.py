"""What a source of images hands over, the registry of sources, and where files lie on disk.

A source is a function of a `Request` registered under the word before the colon of a spec (`digits`,
`imagefolder:PATH`). It returns a `Material`: images and labels as they are, not yet divided, resized or normalised.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convsmith.data.pictures import Pictures
from convsmith.errors import InvalidArgument, refusing
from convsmith.registry import Registry

#: called with images done, images in all, and what is being done
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Request:
    """What `load` was asked for: the part of the spec after the colon, and the arguments that a source may need."""

    spec: str
    argument: str
    root: Path | None = None
    broken: str = "refuse"
    channels: int | None = None
    progress: Progress | None = None
    check: bool = False


@dataclass(frozen=True)
class BrokenFile:
    """An image file that cannot be read, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True, eq=False)
class Material:
    """A data set as its source gives it.

    Shapes: ``images`` a uint8 or float32 tensor [N, C, H, W] or `Pictures` of length N; ``labels`` [N] int64, -1 where
    unknown; ``official`` [N] from `convsmith.data.partition` (all TRAIN if the source does not divide).
    """

    name: str
    classes: tuple[str, ...]
    images: Tensor | Pictures
    labels: Tensor
    source: str
    official: Tensor | None = None
    notes: tuple[str, ...] = ()


#: trait: ``takes`` (what stands after the colon, or None)
SOURCES: Registry[Callable[[Request], Material]] = Registry("data set", "convsmith.data")


def numbered(values: Sequence[Any], request: Request) -> tuple[tuple[str, ...], Tensor]:
    """Return class names and labels [N] of written labels: whole numbers keep their meaning, words are sorted.

    Label 3 is class 3, also if no image has a 2.

    Raises:
        InvalidArgument: a negative number; numbers so large that they cannot count classes.
    """
    words = [str(value) for value in values]
    if not all(re.fullmatch("-?[0-9]{1,18}", word) for word in words):
        names, inverse = np.unique(np.array(words), return_inverse=True)
        return tuple(map(str, names)), torch.from_numpy(inverse.astype(np.int64))
    numbers = [int(word) for word in words]
    low, high = min(numbers), max(numbers)
    if low < 0:
        raise InvalidArgument("labels count from 0", argument=request.spec, given=f"label {low}")
    if high > 10 * max(len(set(numbers)), 10_000):
        given = f"label {high} among {len(set(numbers))}"
        raise InvalidArgument("a label counts classes from 0", argument=request.spec, given=given)
    return tuple(str(n) for n in range(high + 1)), torch.tensor(numbers, dtype=torch.int64)


def data_home() -> Path:
    """Return the folder in the environment variable CONVSMITH_DATA, else ``~/.cache/convsmith/data``."""
    return Path(os.environ.get("CONVSMITH_DATA") or "~/.cache/convsmith/data").expanduser()


@refusing("the path cannot be looked up", OSError, RuntimeError, argument="path")
def existing(path: str | Path, what: str, *, folder: bool | None = None) -> Path:
    """Return ``path`` with ``~`` resolved, or raise `InvalidArgument` if it is not there or not of the right kind."""
    found = Path(path).expanduser()
    if not found.exists():
        parent = next(parent for parent in found.absolute().parents if parent.exists())
        raise InvalidArgument("the path does not exist", argument=what, given=str(found), hint=f"{parent} exists")
    if folder is not None and not (found.is_dir() if folder else found.is_file()):
        raise InvalidArgument(f"this must be a {'folder' if folder else 'file'}", argument=what, given=str(found))
    return found


def quietly(spec: str, hint: str, function: Callable[..., Any], *arguments: Any, **settings: Any) -> Any:
    """Call a library's loader without its printing; what it raises becomes one message."""
    rule = "the data set is not on this machine and cannot be downloaded or read"
    errors = (OSError, EOFError, RuntimeError, ValueError, ImportError, TypeError, AssertionError, zlib.error)
    with (
        refusing(rule, *errors, argument=spec, hint=hint),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        return function(*arguments, **settings)
