"""Look at pictures before any work: which cannot be read, what they have in common, which are copies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convsmith.data.partition import copies
from convsmith.data.pictures import FAILURES, GREY, Pictures, deep, reason, shortened, upright
from convsmith.data.source import BrokenFile, Request
from convsmith.errors import InvalidArgument

#: up to so many pictures and stored bytes, all are decoded without being asked for
CHECKED, CHECKED_BYTES = 2000, 16 * 2**20
#: of larger sets so many headers are read; among more pictures than this no copies are looked for
SAMPLE, COMPARED = 2000, 50_000


@dataclass(frozen=True)
class Look:
    """One picture as seen: grey or colour, (height, width), largest 16-bit value (0: it has 8 bits), mark of copies."""

    channels: int
    size: tuple[int, int]
    largest: int
    mark: Hashable = None


@dataclass(frozen=True)
class Examined:
    """``good`` [N] are the positions of pictures that are used; ``size`` is None where pictures differ."""

    good: Tensor
    copies: Tensor
    channels: int
    size: tuple[int, int] | None
    levels: int
    skipped: tuple[BrokenFile, ...]
    notes: tuple[str, ...]


def examine(pictures: Pictures, request: Request) -> Examined:
    """Look at a sample of headers; at every pixel of small sets, or where ``request.check`` or "skip" asks for it.

    Raises:
        InvalidArgument: broken pictures that are to be refused; none that can be read; grey beside colour pictures
            while ``request.channels`` is None.
    """
    count, spec = len(pictures), request.spec
    whole = request.check or request.broken == "skip" or _small(pictures)
    chosen = (
        range(count) if whole else np.unique(np.linspace(0, count - 1, SAMPLE if pictures.headers else 1).astype(int))
    )
    looks, bad = {}, []
    with ThreadPoolExecutor(4) as pool:
        for done, (number, look) in enumerate(
            zip(chosen, pool.map(lambda n: _look(pictures, int(n), whole), chosen), strict=True), 1
        ):
            if isinstance(look, Look):
                looks[int(number)] = look
            else:
                bad.append(BrokenFile(pictures.name(int(number)), look))
            if request.progress is not None and (done % 100 == 0 or done == len(chosen)):
                request.progress(done, len(chosen), f"looking at the pictures of {spec}")
    if not looks or (bad and request.broken == "refuse"):
        raise InvalidArgument(
            f"{len(bad)} of {count} image files cannot be read" if looks else "no image file can be read",
            argument=spec,
            given=shortened(bad, 200),
            hint='mend or remove them, or broken="skip" leaves them out and lists them',
        )
    good = torch.tensor(list(looks)) if whole else torch.arange(count)
    notes: tuple[str, ...] = (
        () if whole or count <= len(chosen) else (f"{len(chosen):,} of {count:,} files were looked at, none decoded",)
    )
    levels, said = _levels(looks)
    groups = copies(look.mark for look in looks.values()) if whole else _copies_by_bytes(pictures)
    if groups is None:
        notes += (f"copies are not looked for among {count:,} pictures",)
        groups = torch.arange(count)
    sizes = {look.size for look in looks.values()}
    channels = request.channels or _one_count(pictures, looks, spec)
    return Examined(good, groups, channels, sizes.pop() if len(sizes) == 1 else None, levels, tuple(bad), notes + said)


def _small(pictures: Pictures) -> bool:
    if len(pictures) > CHECKED:
        return False
    try:
        return sum(pictures.length(n) or 0 for n in range(len(pictures))) <= CHECKED_BYTES
    except OSError:
        return True  # a missing file: looking names it


def _look(pictures: Pictures, position: int, whole: bool) -> Look | str:
    """Return what a picture holds, or why it cannot be read."""
    try:
        image = pictures.open(position)
        if not isinstance(image, Image.Image):
            return Look(len(image), (image.shape[1], image.shape[2]), 0, image.numpy().tobytes())
        with image:
            wide, channels = deep(image.mode), 1 if image.mode in GREY or image.mode.startswith("I;16") else 3
            if image.mode == "F":
                raise ValueError("pixels of kind 'F' are not supported")
            sideways = image.format != "PNG" and image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
            width, height = image.size[::-1] if sideways else image.size
            largest = int(np.asarray(image).max(initial=0)) if wide else 0
            mark = None
            if whole:
                decoded = np.asarray(upright(image, 0))
                height, width = decoded.shape[:2]
                mark = (decoded.shape, hashlib.blake2b(decoded.tobytes(), digest_size=16).digest())
            return Look(channels, (height, width), largest, mark)
    except FAILURES as error:
        return reason(error)


def _levels(looks: dict[int, Look]) -> tuple[int, tuple[str, ...]]:
    """Return the white of 16-bit pictures: 10 and 12 bit in 16 bit show by their largest value over the set."""
    wide = [look.largest for look in looks.values() if look.largest]
    if not wide:
        return 65535, ()
    bits = next(bits for bits in (10, 12, 16, 64) if max(wide) < 2**bits)
    told = f"{len(wide)} pictures have 16 bits and a largest value of {max(wide)}: read as {min(bits, 16)}-bit levels"
    return 2 ** min(bits, 16) - 1, (told,)


def _copies_by_bytes(pictures: Pictures) -> Tensor | None:
    """Group pictures with equal stored bytes, reading only those of equal length; None for large sets."""
    if len(pictures) > COMPARED or not pictures.headers:
        return None
    marks: list[Hashable] = [pictures.length(n) for n in range(len(pictures))]
    often = {mark for mark, times in Counter(marks).items() if times > 1}
    for number, mark in enumerate(marks):
        if mark in often:
            raw = pictures.stored(number)
            marks[number] = (number,) if raw is None else hashlib.blake2b(raw, digest_size=16).digest()
    return copies(marks)


def _one_count(pictures: Pictures, looks: dict[int, Look], spec: str) -> int:
    """Return the one channel count of the pictures, or refuse."""
    by_count: dict[int, list[str]] = {}
    for number, look in looks.items():
        by_count.setdefault(look.channels, []).append(pictures.name(number))
    if len(by_count) == 1:
        return next(iter(by_count))
    fewest = sorted(by_count.items(), key=lambda item: len(item[1]))
    told = "; ".join(f"{c} channels in {len(p)} files, among them {shortened(p, 5)}" for c, p in fewest)
    hint = "channels=1 or channels=3 converts them (--channels)"
    raise InvalidArgument("the pictures have different numbers of channels", argument=spec, given=told, hint=hint)
