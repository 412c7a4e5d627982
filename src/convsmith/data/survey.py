"""Look at every picture once, before any work: which are broken, what they have in common, which are copies."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace

from PIL import Image
from torch import Tensor

from convsmith.data.partition import copies
from convsmith.data.pictures import FAILURES, Originals, channels_of, picture_tensor, reason
from convsmith.data.source import BrokenFile, Pictures, Request
from convsmith.errors import InvalidArgument

#: up to this many pictures and stored bytes, every picture is decoded; beyond, only headers are read
CHECKED_FILES, CHECKED_BYTES = 2000, 512 * 2**20
#: decoded pictures stay in memory up to this many bytes
KEPT_BYTES = 256 * 2**20

_TAIL = 4096
_ORIENTATION, _SIDEWAYS = 0x0112, frozenset({5, 6, 7, 8})


@dataclass(frozen=True)
class Look:
    """One picture as seen; ``mark`` is equal for copies."""

    channels: int
    size: tuple[int, int]
    mark: Hashable
    picture: Tensor | None = None


@dataclass(frozen=True)
class Survey:
    """The readable pictures: their positions among all, themselves, their group numbers; the broken ones; notes."""

    good: tuple[int, ...]
    pictures: Pictures
    copies: Tensor
    skipped: tuple[BrokenFile, ...]
    notes: tuple[str, ...]


def survey(originals: Originals, request: Request) -> Survey:
    """Look at every picture, and refuse or set aside the broken ones.

    Small sets are decoded, so that a file cut in its middle is found now. Of large ones only the headers are read; such
    a file then raises `RunFailed` with its name when it is reached. Copies are found by pixels, or by stored bytes.

    Raises:
        InvalidArgument: broken pictures that are to be refused; none that can be read; unequal channel counts,
            or an alpha channel, while ``request.channels`` is None.
    """
    broken, channels, spec = request.broken, request.channels, request.spec
    whole = len(originals) <= CHECKED_FILES and sum(originals.lengths or ()) <= CHECKED_BYTES
    if not whole and not originals.headers:
        return _unseen(originals, channels, spec)
    with ThreadPoolExecutor(4) as pool:
        looks = []
        for look in pool.map(lambda n: _look(originals, n, whole), range(len(originals))):
            looks.append(look)
            if request.progress is not None and (len(looks) % 100 == 0 or len(looks) == len(originals)):
                request.progress(len(looks), len(originals), f"looking at the pictures of {spec}")
    bad = tuple(
        BrokenFile(name, look) for name, look in zip(originals.names, looks, strict=True) if isinstance(look, str)
    )
    if bad and broken == "refuse":
        raise InvalidArgument(
            f"{len(bad)} of {len(originals)} image files cannot be read",
            argument=spec,
            given=_listed([str(b) for b in bad]),
            hint='hint or remove them, or pass broken="skip" to leave them out and have them listed',
        )
    good = tuple(n for n, look in enumerate(looks) if isinstance(look, Look))
    seen = [look for look in looks if isinstance(look, Look)]
    if not seen:
        raise InvalidArgument("no image file can be read", argument=spec, given=_listed([str(b) for b in bad]))
    if not whole:
        seen = _told_apart(originals, good, seen)
    names = tuple(originals.names[n] for n in good)
    count, notes = _one_count([look.channels for look in seen], names, channels, spec)
    sizes = {look.size for look in seen}
    decode = Decoder(originals, good, _kept(seen))
    pictures = Pictures(decode, names, count, sizes.pop() if len(sizes) == 1 else None)
    return Survey(good, pictures, copies(look.mark for look in seen), bad, notes)


class Decoder:
    """The decode function of surveyed pictures: from memory where they are kept, else from their source."""

    def __init__(self, originals: Originals, good: Sequence[int], kept: Sequence[Tensor] | None) -> None:
        self.originals, self.good, self.kept = originals, good, kept

    def __call__(self, position: int) -> Tensor:
        return self.originals.decode(self.good[position]) if self.kept is None else self.kept[position]


def _kept(seen: Sequence[Look]) -> list[Tensor] | None:
    pictures = [look.picture for look in seen if look.picture is not None]
    fits = len(pictures) == len(seen) and sum(picture.numel() for picture in pictures) <= KEPT_BYTES
    return pictures if fits else None


def _look(originals: Originals, position: int, whole: bool) -> Look | str:
    """Return what a picture holds, or why it cannot be read."""
    try:
        with originals.opened(position) as image:
            if whole:
                picture = picture_tensor(image)
                mark = (tuple(picture.shape), _digest(picture.numpy().tobytes()))
                return Look(len(picture), (picture.shape[1], picture.shape[2]), mark, picture)
            return Look(channels_of(image.mode), _upright(image), position)
    except FAILURES as error:
        return reason(error)


def _upright(image: Image.Image) -> tuple[int, int]:
    """Return (height, width) after turning by the EXIF orientation, from the header."""
    width, height = image.size
    # PIL decodes a whole PNG to look for orientation behind its pixels
    oriented = image.format != "PNG" or "exif" in image.info
    sideways = oriented and image.getexif().get(_ORIENTATION) in _SIDEWAYS
    return (width, height) if sideways else (height, width)


def _digest(raw: bytes) -> bytes:
    return hashlib.blake2b(raw, digest_size=16).digest()


def _told_apart(originals: Originals, good: Sequence[int], seen: Sequence[Look]) -> list[Look]:
    """Return the looks with marks by stored bytes: by length, then by the end, then, of those still equal, by all."""
    lengths = originals.lengths or (0,) * len(originals)
    marks: list[Hashable] = [lengths[n] for n in good]
    for count in (_TAIL, None):
        often = {mark for mark, times in Counter(marks).items() if times > 1}
        for place, number in enumerate(good):
            if marks[place] in often:
                raw = originals.tail(number, count)
                marks[place] = ("apart", number) if raw is None else (marks[place], _digest(raw))
    return [replace(look, mark=mark) for look, mark in zip(seen, marks, strict=True)]


def _unseen(originals: Originals, channels: int | None, spec: str) -> Survey:
    """Take pictures on trust that only decoding could check; the first tells channels and size."""
    try:
        with originals.opened(0) as image:
            first = picture_tensor(image)
    except FAILURES as error:
        raise InvalidArgument("the first image cannot be read", argument=spec, given=reason(error)) from error
    pictures = Pictures(
        originals.decode, originals.names, channels or len(first), (int(first.shape[1]), int(first.shape[2]))
    )
    note = (
        f"{len(originals)} pictures are not looked at before they are needed: a broken one raises an error when it is "
        "reached, and copies are not looked for"
    )
    return Survey(tuple(range(len(originals))), pictures, copies(range(len(originals))), (), (note,))


def _one_count(
    counts: Sequence[int], names: Sequence[str], channels: int | None, spec: str
) -> tuple[int, tuple[str, ...]]:
    """Return the one channel count of the pictures, or refuse; and notes on what a conversion loses."""
    by_count: dict[int, list[str]] = {}
    for count, name in zip(counts, names, strict=True):
        by_count.setdefault(count, []).append(name)
    alpha = len(by_count.get(2, [])) + len(by_count.get(4, []))
    if channels is not None:
        return channels, (f"the alpha channel of {alpha} pictures is dropped",) if alpha else ()
    if len(by_count) > 1:
        fewest = sorted(by_count.items(), key=lambda item: len(item[1]))
        told = "; ".join(f"{c} channels in {len(p)} files, among them {_listed(p, 5)}" for c, p in fewest)
        raise InvalidArgument(
            "the pictures have different numbers of channels",
            argument=spec,
            given=told,
            hint="pass channels=1 or channels=3 to convert them",
        )
    if alpha:
        raise InvalidArgument(
            "the pictures have an alpha channel",
            argument=spec,
            given=_listed(names, 5),
            hint="pass channels=1 or channels=3; alpha is then dropped",
        )
    return counts[0], ()


def _listed(items: Sequence[str], limit: int = 200) -> str:
    more = f", ... ({len(items)} in all)" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
