"""Images that are not decoded yet, and the one form in which every verb sees them."""

from __future__ import annotations

import io
import os
import struct
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from convsmith.arguments import spelled
from convsmith.errors import InvalidArgument, RunFailed

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
#: the colour behind transparent pixels
GROUND = (255, 255, 255, 255)
GREY = frozenset({"1", "L", "LA", "La", "I", "F"})
_ORIENTATION = 0x0112
_READ = GREY | {"RGB", "P", "PA", "CMYK", "YCbCr", "HSV", "RGBX", "RGBA", "RGBa", "LAB"}


def deep(mode: str) -> bool:
    """Tell whether pixels of this PIL mode have more than 8 bits; raise ValueError for a mode that is not read."""
    if mode not in _READ and not mode.startswith("I;16"):
        raise ValueError(f"pixels of kind {mode!r} are not supported")
    return mode.startswith("I")


def upright(image: Image.Image, channels: int, levels: int = 65535) -> Image.Image:
    """Return an image turned by its EXIF orientation, without alpha, as PIL mode "L" (1 channel) or "RGB".

    Transparent pixels are composed on white. 16-bit grey becomes mode "F" with values in [0, 1], ``levels`` being 1;
    mode "F" passes as it is. CMYK, palettes and other modes are converted as PIL does.
    """
    if image.mode == "F" or (image.mode == {1: "L", 3: "RGB"}.get(channels) and not image.info):
        return image
    # most files have no EXIF, and PIL takes its time to say so; a TIFF has it in its header
    oriented = "exif" in image.info or image.format not in ("JPEG", None)
    if oriented and image.getexif().get(_ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    if deep(image.mode):
        wide = np.asarray(image).astype(np.int64)
        if wide.min(initial=0) < 0 or wide.max(initial=0) > levels:
            raise ValueError(f"grey values beyond {levels} are not supported")
        return Image.fromarray((wide / levels).astype(np.float32))
    if image.has_transparency_data:
        clear = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", clear.size, GROUND), clear)
    wanted = "L" if channels == 1 else "RGB"
    return image if image.mode == wanted else image.convert(wanted)  # converting to the same mode would copy


class Pipeline:
    """A PIL image to a tensor by a library's steps; a class, so that it goes to worker processes.

    Whatever stands before the conversion to a tensor works on the image; 16-bit grey goes through it as floats.
    """

    def __init__(self, steps: Sequence[Any], channels: int) -> None:
        from torchvision.transforms import ToTensor

        self.channels = channels
        self.tensor_at = next(n for n, step in enumerate(steps) if isinstance(step, ToTensor))
        self.steps = list(steps)

    def __call__(self, image: Image.Image | Tensor) -> Tensor:
        if not isinstance(image, Image.Image | Tensor):
            hint = "PIL.Image.fromarray(...)" if hasattr(image, "__array__") else None
            raise InvalidArgument("a transform takes a PIL image", argument="image", given=spelled(image), hint=hint)
        return self.apply(upright(image, self.channels) if isinstance(image, Image.Image) else image)

    def apply(self, image: Image.Image | Tensor) -> Tensor:
        """Return the tensor of an image that is in the form of `upright` already."""
        for step in self.steps[: self.tensor_at]:
            image = step(image)
        tensor: Tensor = self.steps[self.tensor_at](image)
        if len(tensor) != self.channels:  # 16-bit grey for a colour network
            tensor = tensor.clamp(0, 1).expand(self.channels, -1, -1).contiguous()
        for step in self.steps[self.tensor_at + 1 :]:
            tensor = step(tensor)
        return tensor

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(str, self.steps))})"


class Pictures(ABC):
    """A sequence of images as their source stores them, picklable.

    ``levels`` is the largest 16-bit value; ``size`` (height, width) that which all images must have, None for any.
    """

    levels = 65535
    size: tuple[int, int] | None = None
    #: opening an image is much cheaper than decoding it
    headers = True

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def name(self, position: int) -> str:
        """Return what messages call an image."""

    def open(self, position: int) -> Image.Image | Tensor:
        """Return an image as the source has it."""
        return Image.open(io.BytesIO(self.stored(position) or b""))

    def stored(self, position: int) -> bytes | None:
        """Return the stored bytes, or None where they cannot be had."""
        return None

    def length(self, position: int) -> int | None:
        """Return the number of stored bytes, or None where only reading would tell."""
        return None

    def picture(self, position: int, channels: int) -> Image.Image | Tensor:
        """Return one image in the form of `upright`, or raise `RunFailed` naming it."""
        try:
            found = self.open(position)
            if isinstance(found, Image.Image):
                with found as image:
                    found = upright(image, channels, self.levels)
                    found.load()  # before the file is closed
        except FAILURES as error:
            given = f"{self.name(position)}: {reason(error)}"
            raise RunFailed("an image file cannot be read", given=given, hint="repair or remove this file") from error
        height, width = found.shape[1:] if isinstance(found, Tensor) else found.size[::-1]
        if self.size not in (None, (height, width)):
            rule, given = "all images must be {} x {}".format(*self.size), f"{self.name(position)}, {height} x {width}"
            raise RunFailed(rule, given=given, hint="pass size= to resize them")
        return found

    def pixels(self, numbers: Tensor, transform: Pipeline) -> Tensor:
        """Return images ``numbers`` [B] as ``transform`` gives them, float32 [B, C, H, W]."""
        channels = transform.channels
        return torch.stack([transform.apply(self.picture(number, channels)) for number in numbers.tolist()])


class Files(Pictures):
    """Image files; their names are held as bytes, without an object for each."""

    def __init__(self, paths: Iterable[str | bytes | Path]) -> None:
        parts = [os.fsencode(path) for path in paths]
        self.ends = np.cumsum([len(part) for part in parts], dtype=np.int64)
        self.names = b"".join(parts)

    def __len__(self) -> int:
        return len(self.ends)

    def path(self, position: int) -> str:
        """Return the path of a file."""
        start = int(self.ends[position - 1]) if position else 0
        return os.fsdecode(self.names[start : int(self.ends[position])])

    def name(self, position: int) -> str:
        return printable(self.path(position))

    def open(self, position: int) -> Image.Image:
        """See `Pictures.open`; what is no regular file is an error, also where reading it would block."""
        path = self.path(position)
        if not Path(path).is_file():
            raise OSError("not a regular file" if Path(path).exists() else "No such file")
        return Image.open(path)

    def stored(self, position: int) -> bytes:
        return Path(self.path(position)).read_bytes()

    def length(self, position: int) -> int:
        return Path(self.path(position)).stat().st_size


class Arrays(Pictures):
    """Images [N, C, H, W] in memory, uint8 or float32 in [0, 1]; float colour stays a tensor [C, H, W]."""

    def __init__(self, images: Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def name(self, position: int) -> str:
        return f"image {position}"

    def open(self, position: int) -> Image.Image | Tensor:
        image = self.images[position]
        if len(image) == 1:
            return Image.fromarray(image[0].numpy())
        if image.is_floating_point() or len(image) != 3:
            return image
        return Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())


class Prepared(Arrays):
    """Images in memory at their final size: uint8 (divided by 255 on the way out) or float32, shown as they are."""

    def pixels(self, numbers: Tensor, transform: Pipeline | None = None) -> Tensor:
        chosen = self.images[numbers]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen


def printable(name: str) -> str:
    """Return a file name that every terminal can show; bytes that are no UTF-8 are written as escapes."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def shortened(names: Sequence[object], most: int = 10) -> str:
    """Return the names with commas between, cut after ``most``."""
    return ", ".join(map(str, names[:most])) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def reason(error: BaseException) -> str:
    """Return why an image cannot be read, without the memory addresses and paths that PIL puts into it."""
    return "not an image" if "cannot identify image file" in str(error) else (str(error) or type(error).__name__)
