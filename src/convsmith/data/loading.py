"""From a spec to a data set that is divided, described and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convsmith.arguments import checked, one_of
from convsmith.data.arrays import mean_and_std, prepared
from convsmith.data.augment import AUGMENTATIONS
from convsmith.data.checking import examine
from convsmith.data.partition import LEFT_OUT, NAMES, TEST, TRAIN, copies, digest, partition
from convsmith.data.pictures import Arrays, Files, Pictures, Prepared, shortened
from convsmith.data.preprocessing import DataDescription, Preprocessing
from convsmith.data.source import SOURCES, BrokenFile, Material, Progress, Request, existing
from convsmith.data.split import ImageData, ImageSplit, Size
from convsmith.errors import InvalidArgument, close_matches, refusing

#: mean and std of grey images on disk: those of ImageNet's luma
_GREY = ((0.449,), (0.226,))


def available() -> list[str]:
    """Return every spec that `load` knows, with what stands after the colon in capitals.

    Examples:
        >>> "digits" in available()
        True
    """
    return [_spelling(entry.name, entry.traits["takes"]) for entry in SOURCES]


def _spelling(name: str, takes: str | None) -> str:
    return name if takes is None else f"{name}:{takes}"


@checked
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
    preprocessing: Preprocessing | None = None,
    check: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> ImageData:
    """Load a data set and divide it into train, validation and test.

    Args:
        spec: a name (`available`), with a path or a further name after a colon where it takes one; or a folder.
        size: height and width of the images that come out; None keeps the native size, which must then be one.
        channels: 1 or 3; None keeps what the images have, which must then be one number.
        seed: key of the division, where the source has no test (or validation) set of its own.
        augment: what happens to training images fetched with a key: see `AUGMENTATIONS`.
        broken: "refuse" raises one error that lists all files that cannot be read, "skip" lists them in ``skipped``.
        root: folder of the files, for sources that look for files, download them, or name them relatively. Where it is
            None: the folder in the environment variable CONVSMITH_DATA, then ``~/.cache/convsmith/data``.
        crop: cut a window of that many pixels around the ink before resizing (20 for MNIST; images in memory only).
        preprocessing: that of the network the images are for; then ``size`` and ``channels`` may only change its size.
            Without it images on disk are resized to cover ``size`` and cut in the centre, normalised by ImageNet's
            statistics; images in memory are averaged over areas and normalised by those of their training split.
        check: decode every image now, whatever the size of the set.
        progress: called with (done, all, what) while images are looked at.
        settings: of the augmentation, by timm's names (``auto_augment``, ``re_prob``, ...).

    Raises:
        InvalidArgument: an unknown spec or argument, a missing path, a folder that does not hold what it should, broken
            files, images of unequal size or channels where none is given.
        MissingExtra: the source needs a package that is not installed.

    Examples:
        >>> len(load("digits").test)
        359
    """
    name, argument = parsed(spec)
    wanted = checked_size(size)
    one_of("channels", channels, (None, 1, 3))
    one_of("broken", broken, ("refuse", "skip"))
    AUGMENTATIONS.entry(augment)
    if preprocessing is not None:
        count = channels or preprocessing.channels
        if count != preprocessing.channels:
            raise InvalidArgument(f"the network takes {preprocessing.channels}", argument="channels", given=count)
        one_of("channels", count, (1, 3))
        wanted = wanted or (preprocessing.input_size[1], preprocessing.input_size[2])
        channels, preprocessing = count, replace(preprocessing, input_size=(count, *wanted))
    where = None if root is None else existing(root, "root", folder=True)
    request = Request(f"{name}:{argument}" if argument else name, argument, where, broken, channels, progress, check)
    data = build(SOURCES[name](request), request, size=wanted, seed=seed, crop=crop, preprocessing=preprocessing)
    return data if augment == "none" and not settings else data.map(train=data.train.with_augment(augment, **settings))


@checked
def from_files(
    files: Sequence[str | Path], preprocessing: Preprocessing, *, broken: str = "refuse"
) -> tuple[ImageSplit, tuple[BrokenFile, ...]]:
    """Return image files as a split without labels, seen through a network, and the broken files left out.

    Examples:
        >>> split, broken = from_files(["photo.png"], Preprocessing.from_model(model))
    """
    one_of("channels", preprocessing.channels, (1, 3))
    labels, part = torch.full((len(files),), -1), torch.full((len(files),), TEST)
    material = Material("images", (), Files(files), labels, "files given by name", part)
    request = Request("images", "", broken=broken, channels=preprocessing.channels)
    found = build(material, request, preprocessing=preprocessing)
    return found.test, found.skipped


def checked_size(size: int | Size | None) -> Size | None:
    """Return ``size`` as (height, width), or raise `InvalidArgument`."""
    pair = (size, size) if isinstance(size, int) else size
    if pair is not None and (len(tuple(pair)) != 2 or any(not isinstance(n, int) or n < 1 for n in pair)):
        raise InvalidArgument("a size is one positive whole number, or height and width", argument="size", given=size)
    return None if pair is None else (pair[0], pair[1])


@refusing("no folder of this name can be read", OSError, RuntimeError, argument="data set")
def parsed(spec: str) -> tuple[str, str]:
    """Return the name and what follows the colon; a folder is class folders or loose images by what is in it."""
    name, colon, argument = spec.partition(":")
    if spec and name not in SOURCES and Path(spec).expanduser().is_dir():
        inside = any(child.is_dir() and not child.name.startswith(".") for child in Path(spec).expanduser().iterdir())
        return ("imagefolder" if inside else "images"), spec
    if name not in SOURCES:
        beside = Path(spec).expanduser().parent
        folders = [str(path) for path in sorted(beside.iterdir()) if path.is_dir()] if beside.is_dir() else []
        near = close_matches(spec, [*SOURCES.names(), *folders])
        hint = near if near.startswith("did") else f"a folder that is there, or one of {', '.join(available())}"
        rule = "no data set and no folder has this name"
        raise InvalidArgument(rule, argument="data set", given=repr(spec), hint=hint)
    takes = SOURCES.entry(name).traits["takes"]
    if bool(colon and argument) != (takes is not None):
        rule = f"{'a path or name follows the colon' if takes else 'nothing follows'}: {_spelling(name, takes)}"
        raise InvalidArgument(rule, argument="data set", given=repr(spec))
    return name, argument


def build(
    material: Material,
    request: Request,
    *,
    size: Size | None = None,
    seed: int = 0,
    crop: int | None = None,
    preprocessing: Preprocessing | None = None,
) -> ImageData:
    """Divide and describe what a source gave; see `load` for the arguments."""
    labels, images = material.labels, material.images
    official = torch.full_like(labels, TRAIN) if material.official is None else material.official
    numbers, notes = torch.arange(len(labels)), material.notes
    skipped: tuple[BrokenFile, ...] = ()
    if not len(labels):
        raise InvalidArgument("a data set has at least one image", given=material.name)
    plain = preprocessing is None or preprocessing.interpolation == "box"
    if isinstance(images, Tensor) and (plain or crop is not None or images.is_floating_point()):
        groups = copies(digest(image.tobytes()) for image in images.numpy())
        pictures: Pictures = Prepared(prepared(images, size, request.channels, crop))
    else:
        if crop is not None:
            rule = "only images in memory are cut around their ink"
            raise InvalidArgument(rule, argument=f"crop={crop}", given=material.name)
        pictures = Arrays(images) if isinstance(images, Tensor) else images
        found = examine(pictures, request)
        numbers, groups, skipped, notes = found.good, found.copies, found.skipped, notes + found.notes
        _check_classes(material, labels[numbers[official[numbers] == TRAIN]], official)
        labels, official = labels[numbers], official[numbers]
        final = preprocessing or _plain(material.name, size or found.size, found.channels)
        pictures.size = found.size if preprocessing is None and size is None else None
    part = partition(labels, groups, official, seed)
    rows = {name: (part == code).nonzero()[:, 0] for code, name in NAMES.items()}
    if isinstance(pictures, Prepared):
        count, height, width = pictures.images.shape[1:]
        if preprocessing is None:
            final = Preprocessing((count, height, width), "box", *mean_and_std(pictures.images, rows["train"]), 1.0)
        else:
            final = replace(preprocessing, input_size=(count, height, width))
    counts = {name: len(chosen) for name, chosen in rows.items()}
    about = DataDescription(material.name, material.classes, 1, (1, 1), (), (), counts, material.source)
    about = about.seen_through(final)
    splits = {n: ImageSplit(pictures, labels[r], numbers[r], about) for n, r in rows.items()}
    left = numbers[part == LEFT_OUT].tolist()
    if left:
        told = shortened(left, 20)
        notes += (f"{len(left)} images are left out as copies of official test or validation images: {told}",)
    return ImageData(about, **splits, skipped=skipped, notes=notes)


def _plain(name: str, size: Size | None, channels: int) -> Preprocessing:
    if size is None:
        rule = "the images differ in size"
        raise InvalidArgument(rule, argument="size", given=f"{name}: none", hint="give one in pixels, like 224")
    if channels == 1:
        return Preprocessing((1, *size), "bicubic", *_GREY, 1.0)
    return Preprocessing((3, *size), crop_pct=1.0)


def _check_classes(material: Material, good: Tensor, official: Tensor) -> None:
    """Refuse a class whose training images are all broken."""
    if material.classes and len(good) < len(material.labels):
        lost = set(material.labels[official == TRAIN].tolist()) - set(good.tolist())
        if lost:
            names, rule = ", ".join(material.classes[n] for n in sorted(lost)), "every image of a class is broken"
            raise InvalidArgument(rule, argument=material.name, given=names, hint="mend the files")
