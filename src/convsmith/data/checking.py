"""Look at images before any work: which cannot be read, what they have in common, which are copies."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convsmith.data.partition import copies, digest
from convsmith.data.pictures import FAILURES, GREY, Pictures, deep, reason, shortened, upright
from convsmith.data.source import BrokenFile, Request
from convsmith.errors import InvalidArgument

#: up to so many images and stored bytes, all are decoded without being asked for
CHECKED, CHECKED_BYTES = 2000, 16 * 2**20
#: of larger sets so many headers are read; among more images than this no copies are looked for
SAMPLE, COMPARED = 2000, 50_000


@dataclass(frozen=True)
class Look:
    """One image as seen: grey or colour, (height, width), largest 16-bit value (0: it has 8 bits), mark of copies."""

    channels: int
    size: tuple[int, int]
    largest: int
    mark: Hashable = None


@dataclass(frozen=True)
class Examined:
    """``good`` [N] are the positions of images that are used; ``size`` is None where images differ."""

    good: Tensor
    copies: Tensor
    channels: int
    size: tuple[int, int] | None
    skipped: tuple[BrokenFile, ...]
    notes: tuple[str, ...]


def examine(pictures: Pictures, request: Request) -> Examined:
    """Look at a sample of headers; at every pixel of small sets, or where ``request.check`` or "skip" asks for it.

    ``pictures`` are told the white of their 16-bit images.

    Raises:
        InvalidArgument: broken images that are to be refused; none that can be read; grey beside colour images
            while ``request.channels`` is None.
    """
    count = len(pictures)
    whole = request.check or request.broken == "skip" or _small(pictures)
    sample = np.linspace(0, count - 1, SAMPLE if pictures.headers else 1).astype(int)
    chosen = range(count) if whole else np.unique(sample).tolist()
    looks: dict[int, Look] = {}
    bad = []
    with ThreadPoolExecutor(4) as pool:
        found = zip(chosen, pool.map(lambda number: _look(pictures, number, whole), chosen), strict=True)
        for done, (number, look) in enumerate(found, 1):
            if isinstance(look, Look):
                looks[number] = look
            else:
                bad.append(BrokenFile(pictures.name(number), look))
            if request.progress is not None and (done % 100 == 0 or done == len(chosen)):
                request.progress(done, len(chosen), f"looking at the images of {request.spec}")
    if not looks or (bad and request.broken == "refuse"):
        rule = f"{len(bad)} of {count} image files cannot be read" if looks else "no image file can be read"
        hint = 'repair or remove them; where it is taken, broken="skip" leaves them out'
        raise InvalidArgument(rule, argument=request.spec, given=shortened(bad, 200), hint=hint)
    wide, notes = [look.largest for look in looks.values() if look.largest], []
    if wide:  # 10 and 12 bit in 16 bit show by their largest value over the set
        bits = next((bits for bits in (10, 12) if max(wide) < 2**bits), 16)
        pictures.levels = 2**bits - 1
        notes.append(f"{len(wide)} images have 16 bits and a largest value of {max(wide)}: read as {bits}-bit levels")
    if len(chosen) < count:
        notes.insert(0, f"{len(chosen):,} of {count:,} files were looked at, none decoded")
    groups = copies(look.mark for look in looks.values()) if whole else _copies_by_bytes(pictures)
    if groups is None:
        notes.append(f"copies are not looked for among {count:,} images")
        groups = torch.arange(count)
    sizes = {look.size for look in looks.values()}
    channels = request.channels or _one_count(pictures, looks, request.spec)
    good = torch.tensor(list(looks)) if whole else torch.arange(count)
    return Examined(good, groups, channels, sizes.pop() if len(sizes) == 1 else None, tuple(bad), tuple(notes))


def _small(pictures: Pictures) -> bool:
    try:
        return len(pictures) <= CHECKED and sum(pictures.length(n) or 0 for n in range(len(pictures))) <= CHECKED_BYTES
    except OSError:
        return True  # a missing file: looking names it


def _look(pictures: Pictures, position: int, whole: bool) -> Look | str:
    """Return what an image holds, or why it cannot be read."""
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
                mark = (decoded.shape, digest(decoded.tobytes()))
            return Look(channels, (height, width), largest, mark)
    except FAILURES as error:
        return reason(error)


def _copies_by_bytes(pictures: Pictures) -> Tensor | None:
    """Group images with equal stored bytes, reading only those of equal length; None for large sets."""
    if len(pictures) > COMPARED or not pictures.headers:
        return None
    marks: list[Hashable] = [pictures.length(n) for n in range(len(pictures))]
    often = Counter(marks)
    for number, mark in enumerate(marks):
        if often[mark] > 1:
            raw = pictures.stored(number)
            marks[number] = (number,) if raw is None else digest(raw)
    return copies(marks)


def _one_count(pictures: Pictures, looks: Mapping[int, Look], spec: str) -> int:
    """Return the one channel count of the images, or refuse."""
    by_count: dict[int, list[str]] = defaultdict(list)
    for number, look in looks.items():
        by_count[look.channels].append(pictures.name(number))
    if len(by_count) == 1:
        return next(iter(by_count))
    fewest = sorted(by_count.items(), key=lambda item: len(item[1]))
    told = "; ".join(f"{c} channels in {len(p)} files, among them {shortened(p, 5)}" for c, p in fewest)
    hint = "channels=1 or channels=3 converts them"
    raise InvalidArgument("the images have different numbers of channels", argument=spec, given=told, hint=hint)
