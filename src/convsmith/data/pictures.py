"""Pictures that are not decoded yet: files or streams, opened and decoded one at a time by PIL."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from convsmith.errors import RunFailed

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
#: what PIL raises on damaged or unsupported files
FAILURES = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    TypeError,
    struct.error,
    Image.DecompressionBombError,
)

_CHANNELS = {"1": 1, "L": 1, "I": 1, "LA": 2, "La": 2, "RGBA": 4, "RGBa": 4, "PA": 4}
_AS_RGB = frozenset({"RGB", "P", "CMYK", "YCbCr", "HSV", "RGBX"})


@dataclass(frozen=True)
class Originals:
    """Pictures as their source stores them.

    ``names`` are for messages. ``opened(n)`` gives a PIL picture, ``tail(n, count)`` its last ``count`` stored bytes
    (all for None), or None where they cannot be had; both must be safe to call from threads. ``lengths`` are the
    numbers of stored bytes, where known. ``headers``: opening a picture is much cheaper than decoding it.
    """

    names: tuple[str, ...]
    opened: Callable[[int], Image.Image]
    tail: Callable[[int, int | None], bytes | None]
    lengths: tuple[int, ...] | None = None
    headers: bool = True

    def __len__(self) -> int:
        return len(self.names)

    def decode(self, position: int) -> Tensor:
        """Return one picture as uint8 [C, h, w], or raise `RunFailed` naming it."""
        try:
            with self.opened(position) as image:
                return picture_tensor(image)
        except FAILURES as error:
            raise RunFailed(
                "an image file cannot be read",
                given=f"{self.names[position]}: {reason(error)}",
                hint="hint or remove this file",
            ) from error


def files(paths: Sequence[Path]) -> Originals:
    """Return picture files."""

    def tail(position: int, count: int | None) -> bytes:
        with paths[position].open("rb") as stream:
            stream.seek(0, 2)
            stream.seek(0 if count is None else max(0, stream.tell() - count))
            return stream.read()

    return Originals(
        tuple(map(str, paths)),
        lambda position: Image.open(paths[position]),
        tail,
        tuple(path.stat().st_size if path.is_file() else 0 for path in paths),
    )


def read_picture(path: str | Path) -> Tensor:
    """Decode a picture file to uint8 [C, h, w] (see `picture_tensor`).

    Raises:
        RunFailed: the file cannot be decoded; the message names it.
    """
    return files([Path(path)]).decode(0)


def channels_of(mode: str) -> int:
    """Return the channels a picture of this PIL mode is decoded to; alpha counts as one."""
    if mode in _AS_RGB:
        return 3
    if mode in _CHANNELS or mode.startswith("I;16"):
        return _CHANNELS.get(mode, 1)
    raise ValueError(f"pixels of kind {mode!r} are not supported")


def picture_tensor(image: Image.Image) -> Tensor:
    """Return a PIL picture as uint8 [C, h, w], upright; 16-bit grey is rounded to 8 bits, palettes become RGB."""
    count = channels_of(image.mode)
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        if wide.min(initial=0) < 0 or wide.max(initial=0) > 65535:
            raise ValueError("grey values beyond 16 bits are not supported")
        array = ((wide + 128) // 257).astype(np.uint8)
    else:
        array = np.array(image.convert({1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}[count]))
    array = array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(array))


def reason(error: BaseException) -> str:
    """Return why a picture cannot be read, without the memory addresses and paths that PIL puts into it."""
    return "not an image" if "cannot identify image file" in str(error) else (str(error) or type(error).__name__)
