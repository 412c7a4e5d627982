"""From a spec to a data set that is divided, resized, described and checked."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from convsmith.data.augment import AUGMENTATIONS
from convsmith.data.description import DataDescription
from convsmith.data.image_data import ImageData
from convsmith.data.partition import LEFT_OUT, NAMES, partition
from convsmith.data.places import existing
from convsmith.data.resize import Size, checked_size
from convsmith.data.source import SOURCES, Material, Pictures, Progress, Request
from convsmith.data.split import ImageSplit
from convsmith.data.statistics import mean_and_std
from convsmith.data.store import DecodingStore, Store, prepared
from convsmith.errors import InvalidArgument, close_matches


def available() -> list[str]:
    """Return every spec that `load` knows, with what stands after the colon in capitals."""
    return [_spelling(entry.name, entry.traits["takes"]) for entry in SOURCES]


def _spelling(name: str, takes: str | None) -> str:
    return name if takes is None else f"{name}:{takes}"


def load(
    spec: str,
    *,
    size: int | Size | None = None,
    channels: int | None = None,
    seed: int = 0,
    augment: str = "none",
    broken: str = "refuse",
    root: str | Path | None = None,
    crop: int | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Load a data set and divide it into train, validation and test.

    Args:
        spec: a name (`available`), with a path or a further name after a colon where it takes one.
        size: height and width of the images that come out; None keeps the native size, which must then be one.
        channels: 1 or 3; None keeps what the images have, which must then be one number.
        seed: key of the division, where the source has no test (or validation) set of its own.
        augment: what happens to training images fetched with a key: "none", "digits", "flip-crop", "imagenet".
        broken: "refuse" raises one error that lists all files that cannot be read, "skip" lists them in ``skipped``.
        root: folder of the files, for sources that look for files, download them, or name them relatively. Where it is
            None: the folder in the environment variable CONVSMITH_DATA, then ``~/.cache/convsmith/data``.
        progress: called with (done, all, what) while pictures are looked at.
        crop: cut a window of that many pixels around the ink before resizing (20 for MNIST; images in memory only).

    Raises:
        InvalidArgument: an unknown spec or argument, a missing path, a folder that does not hold what it should, broken
            files, images of unequal size or channels where none is given.
        MissingExtra: the source needs a package that is not installed.
    """
    name, argument = parsed(spec)
    wanted = checked_size(size)
    if channels not in (None, 1, 3):
        raise InvalidArgument("images have 1 or 3 channels", argument="channels", given=channels)
    if broken not in ("refuse", "skip"):
        raise InvalidArgument("broken files are refused or skipped", argument="'refuse' or 'skip'", given=repr(broken))
    AUGMENTATIONS.entry(augment)
    where = None if root is None else existing(root, "root", folder=True)
    request = Request(spec, argument, where, broken, channels, progress)
    material = SOURCES[name](request)
    return build(material, size=wanted, channels=channels, seed=seed, augment=augment, crop=crop, progress=progress)


def parsed(spec: str) -> tuple[str, str]:
    """Return the name and what follows the colon, or raise `InvalidArgument`."""
    name, colon, argument = spec.partition(":")
    if name not in SOURCES:
        raise InvalidArgument(
            "no data set has this name",
            argument="a data set",
            given=repr(spec),
            hint=close_matches(name, SOURCES.names()) + f" (all: {', '.join(available())})",
        )
    takes = SOURCES.entry(name).traits["takes"]
    if bool(colon and argument) != (takes is not None):
        raise InvalidArgument(
            "a path or name follows the colon" if takes else "nothing follows this name",
            argument=_spelling(name, takes),
            given=repr(spec),
        )
    return name, argument


def build(
    material: Material,
    *,
    size: Size | None = None,
    channels: int | None = None,
    seed: int = 0,
    augment: str = "none",
    crop: int | None = None,
    progress: Progress | None = None,
) -> ImageData:
    """Divide, resize and describe what a source gave; see `load` for the arguments."""
    if len(material.labels) == 0:
        raise InvalidArgument("a data set has at least one image", given=material.name)
    store = _store(material, size, channels, crop)
    numbers, part = material.numbers(), partition(material.labels, material.copies, material.division(), seed)
    rows = {name: (part == code).nonzero()[:, 0] for code, name in NAMES.items()}
    mean, std = mean_and_std(store, rows["train"], seed, progress)
    counts = {name: len(chosen) for name, chosen in rows.items()}
    description = DataDescription(
        material.name, material.classes, store.channels, store.size, mean, std, counts, material.source
    )
    splits = {
        name: ImageSplit(store, chosen, material.labels[chosen], numbers[chosen], description)
        for name, chosen in rows.items()
    }
    return ImageData(
        description,
        splits["train"].with_augment(augment),
        splits["validation"],
        splits["test"],
        material.skipped,
        material.notes + _left_out(part, numbers),
    )


def _store(material: Material, size: Size | None, channels: int | None, crop: int | None) -> Store:
    images = material.images
    if isinstance(images, Tensor):
        return prepared(images, size, channels, crop)
    if crop is not None:
        raise InvalidArgument(
            "only images in memory are cut around their ink", argument=f"crop={crop}", given=material.name
        )
    return _decoding(images, material.name, size, channels)


def _decoding(pictures: Pictures, name: str, size: Size | None, channels: int | None) -> DecodingStore:
    final = size or pictures.size
    if final is None:
        raise InvalidArgument(
            "the pictures differ in size", argument="batches of one size", given=name, hint="give size=, 224 for one"
        )
    return DecodingStore(
        pictures.decode,
        pictures.names,
        final,
        channels or pictures.channels,
        resizing=size is not None,
        converting=channels is not None,
    )


def _left_out(part: Tensor, numbers: Tensor) -> tuple[str, ...]:
    left = numbers[part == LEFT_OUT].tolist()
    if not left:
        return ()
    shown = ", ".join(map(str, left[:20])) + (", ..." if len(left) > 20 else "")
    return (f"{len(left)} images are left out as copies of official test or validation images: {shown}",)
