"""Picture files: look at each once, say exactly which are broken, then decode on demand."""

from __future__ import annotations

import hashlib
import struct
from collections import Counter
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from convsmith.data.partition import copies
from convsmith.data.source import BrokenFile, Pictures
from convsmith.errors import InvalidArgument, RunFailed

EXTENSIONS = frozenset([".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"])
#: up to this many files and bytes every picture is decoded before any work; beyond, only headers are read
CHECKED_FILES, CHECKED_BYTES = 2000, 512 * 2**20
#: decoded pictures of a folder stay in memory up to this many bytes
KEPT_BYTES = 256 * 2**20

_FAILURES = (
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
_ORIENTATION, _SIDEWAYS = 0x0112, frozenset({5, 6, 7, 8})


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


def read_picture(path: Path) -> Tensor:
    """Decode a picture file to uint8 [C, h, w].

    Raises:
        RunFailed: the file cannot be decoded; the message names it.
    """
    try:
        with Image.open(path) as image:
            return picture_tensor(image)
    except _FAILURES as error:
        raise RunFailed(
            "an image file cannot be read",
            given=f"{path}: {_reason(error)}",
            mend="mend or remove this file",
        ) from error


def _reason(error: BaseException) -> str:
    # PIL puts the path, or the memory address of a stream, into this message
    return "not an image" if "cannot identify image file" in str(error) else (str(error) or type(error).__name__)


@dataclass(frozen=True)
class _Look:
    """One file as seen: what `survey` needs of it."""

    channels: int
    size: tuple[int, int]
    mark: Hashable
    picture: Tensor | None


@dataclass(frozen=True)
class Survey:
    """The readable files among those given: their positions, the pictures, their group numbers, and the broken ones."""

    good: tuple[int, ...]
    pictures: Pictures
    copies: Tensor
    skipped: tuple[BrokenFile, ...]
    notes: tuple[str, ...]


def survey(paths: Sequence[Path], *, broken: str, channels: int | None, spec: str) -> Survey:
    """Look at every file: decode it (small folders) or read its header, and refuse or set aside the broken ones.

    Copies are found by pixels where pictures are decoded, else by the bytes of files of equal length.

    Raises:
        InvalidArgument: broken files under ``broken="refuse"``; nothing readable; unequal channel counts, or alpha, and
            ``channels`` is None.
    """
    lengths = [path.stat().st_size if path.is_file() else -1 for path in paths]
    whole = len(paths) <= CHECKED_FILES and sum(lengths) <= CHECKED_BYTES
    shared = {length for length, count in Counter(lengths).items() if count > 1}
    with ThreadPoolExecutor(4) as pool:
        looks = list(pool.map(lambda path, length: _look(path, whole, length in shared), paths, lengths))
    bad = tuple(BrokenFile(str(p), look) for p, look in zip(paths, looks, strict=True) if isinstance(look, str))
    good = tuple(n for n, look in enumerate(looks) if isinstance(look, _Look))
    seen = [look for look in looks if isinstance(look, _Look)]
    if bad and broken == "refuse":
        raise InvalidArgument(
            f"{len(bad)} of {len(paths)} image files cannot be read",
            asked=spec,
            given=_listed([str(b) for b in bad]),
            mend='mend or remove them, or pass broken="skip" to leave them out and have them listed',
        )
    if not seen:
        raise InvalidArgument("no image file can be read", asked=spec, given=_listed([str(b) for b in bad]))
    count, notes = _one_count([look.channels for look in seen], [paths[n] for n in good], channels, spec)
    sizes = {look.size for look in seen}
    kept = [look.picture for look in seen]
    decode = _Decoder(tuple(paths[n] for n in good), kept if _fits(kept) else None)
    pictures = Pictures(decode, tuple(str(paths[n]) for n in good), count, sizes.pop() if len(sizes) == 1 else None)
    return Survey(good, pictures, copies(look.mark for look in seen), bad, notes)


class _Decoder:
    """The decode function of a folder: from memory where the pictures are kept, else from the files."""

    def __init__(self, paths: Sequence[Path], kept: Sequence[Tensor | None] | None) -> None:
        self.paths, self.kept = paths, kept

    def __call__(self, position: int) -> Tensor:
        picture = None if self.kept is None else self.kept[position]
        return read_picture(self.paths[position]) if picture is None else picture


def _fits(pictures: Sequence[Tensor | None]) -> bool:
    return all(p is not None for p in pictures) and sum(p.numel() for p in pictures if p is not None) <= KEPT_BYTES


def _look(path: Path, whole: bool, shared_length: bool) -> _Look | str:
    """Return what a file holds, or why it cannot be read."""
    try:
        with Image.open(path) as image:
            if whole:
                picture = picture_tensor(image)
                mark = (tuple(picture.shape), hashlib.blake2b(picture.numpy().tobytes(), digest_size=16).digest())
                return _Look(len(picture), (picture.shape[1], picture.shape[2]), mark, picture)
            width, height = image.size
            # PIL decodes a whole PNG to look for orientation behind its pixels
            oriented = image.format != "PNG" or "exif" in image.info
            sideways = oriented and image.getexif().get(_ORIENTATION) in _SIDEWAYS
            count = channels_of(image.mode)
        # a file whose length no other file has cannot be a byte-for-byte copy
        mark_of_bytes: Hashable = hashlib.blake2b(path.read_bytes()).digest() if shared_length else str(path)
        return _Look(count, (width, height) if sideways else (height, width), mark_of_bytes, None)
    except _FAILURES as error:
        return _reason(error)


def _one_count(
    counts: Sequence[int], paths: Sequence[Path], channels: int | None, spec: str
) -> tuple[int, tuple[str, ...]]:
    """Return the one channel count of the pictures, or refuse; and notes on what a conversion loses."""
    by_count: dict[int, list[str]] = {}
    for count, path in zip(counts, paths, strict=True):
        by_count.setdefault(count, []).append(str(path))
    alpha = len(by_count.get(2, [])) + len(by_count.get(4, []))
    if channels is not None:
        return channels, (f"the alpha channel of {alpha} pictures is dropped",) if alpha else ()
    if len(by_count) > 1:
        fewest = sorted(by_count.items(), key=lambda item: len(item[1]))
        told = "; ".join(f"{c} channels in {len(p)} files, among them {_listed(p, 5)}" for c, p in fewest)
        raise InvalidArgument(
            "the pictures have different numbers of channels",
            asked=spec,
            given=told,
            mend="pass channels=1 or channels=3 to convert them",
        )
    if alpha:
        raise InvalidArgument(
            "the pictures have an alpha channel",
            asked=spec,
            given=_listed([str(p) for p in paths], 5),
            mend="pass channels=1 or channels=3; alpha is then dropped",
        )
    return counts[0], ()


def _listed(items: Sequence[str], limit: int = 200) -> str:
    more = f", ... ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
