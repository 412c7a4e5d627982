"""Whatever the caller has (specs, folders, lists, data sets, arrays) as one labelled source and one bare target."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from convsmith import arguments, data
from convsmith.data import AUGMENTATIONS, ImageData, ImageSplit, Loader, Preprocessing
from convsmith.data.loading import checked_size
from convsmith.errors import InvalidArgument, close_matches, refusing


@dataclass(frozen=True)
class InputOptions:
    """How specs and folders become images.

    Args:
        target_classes: cut a labelled target to these classes (for experiments).
        size: side of the images, for specs and folders.
        channels: 1 or 3, for specs and folders.
        crop: see `convsmith.data.pair`.
        preprocessing: that of a pretrained network, `Preprocessing.from_model(model)`; ``size`` may only change its
            size. Without it images are read plainly and normalised by the source's statistics.
        augment: random changes of the training images of both domains (`convsmith.data.AUGMENTATIONS`). "none" leaves
            a source that was loaded with changes of its own as it is.
        workers: processes that read and change images ahead; they change the speed only.
    """

    target_classes: Any = None
    size: int | tuple[int, int] | None = None
    channels: int | None = None
    crop: tuple[int | None, int | None] = (None, None)
    preprocessing: Preprocessing | None = None
    augment: str = "none"
    workers: int = 0

    def __post_init__(self) -> None:
        AUGMENTATIONS.entry(self.augment)
        arguments.integer("workers", self.workers, least=0)
        arguments.one_of("channels", self.channels, (None, 1, 3))
        arguments.of_type("preprocessing", self.preprocessing, Preprocessing | None)
        for side in arguments.of_type("crop", self.crop, tuple[int | None, int | None]):
            if side is not None:
                arguments.integer("crop", side, least=1)
        arguments.of_type("size", self.size, int | tuple[int, int] | None)
        checked_size(self.size)


@dataclass(frozen=True)
class Inputs:
    """Both domains, ready to train on.

    ``target`` has every image of the target and no label; ``target_labels`` [n] are what the data came with (-1 where
    unknown), for evaluation alone; ``shared`` are the classes among them, () if none is known. ``workers`` processes
    read ahead.
    """

    source: ImageSplit
    validation: ImageSplit
    target: ImageSplit
    target_labels: Tensor
    classes: tuple[str, ...]
    shared: tuple[int, ...]
    workers: int = 0

    def batches(self, split: ImageSplit) -> Loader:
        """Return all images of ``split`` in order, as many at once as `rows_at_once` says."""
        return Loader(split, rows_at_once(split), workers=self.workers)


def rows_at_once(split: ImageSplit) -> int:
    """Return how many images are measured at once: 512 of 64 x 64 pixels, fewer of larger ones, whatever the memory."""
    about = split.description
    return max(1, min(512, 512 * 3 * 64 * 64 // (about.channels * math.prod(about.size))))


@arguments.checked
def resolve(source: Any, target: Any, options: InputOptions | None = None, *, seed: int = 0) -> Inputs:
    """Return source and target in one form.

    Args:
        source: a data spec, a folder of class folders, a list file, `ImageData`, a labelled `ImageSplit`, a labelled
            torch dataset of (image, label), or ``(X, y)``.
        target: the same, labels unused; or ``X`` alone.
        options: see `InputOptions`.
        seed: of the divisions; a fifth is held out from a source that comes without one.

    Raises:
        InvalidArgument: unlabelled or one-class source, empty target, unequal size or channels, unknown target class.
    """
    o = options or InputOptions()
    sides: list[Any] = [_opened(source, "source"), _opened(target, "target")]
    for side, crop in zip(sides, o.crop, strict=True):
        _check_reading(side, o, crop)
    apart = any(isinstance(side, ImageSplit) for side in sides)
    how: dict[str, Any] = {"size": o.size, "channels": o.channels, "seed": seed}
    if apart or o.preprocessing is not None:
        for n, crop in enumerate(o.crop):
            if isinstance(sides[n], str):
                sides[n] = data.load(sides[n], crop=crop, preprocessing=o.preprocessing, **how)
        o, how = replace(o, crop=(None, None)), {}
    left, right = sides
    if apart:
        train, validation = (left.train, left.validation) if isinstance(left, ImageData) else (left, left.subset([]))
        whole = _merged(right) if isinstance(right, ImageData) else right
        whole, shared = _restricted(whole, train.classes, o.target_classes)
    else:
        pair = data.pair(left, right, target_classes=o.target_classes, crop=o.crop, **how)
        train, validation, whole = pair.source.train, pair.source.validation, _merged(pair.target)
        shared = pair.shared
    if len(validation) < 2:
        train, validation = _divided(train, 0.2, seed)
    _check(train, whole)
    description = train.description
    whole = whole.with_normalisation(description.mean, description.std)
    bare = replace(whole.without_labels(), description=replace(whole.description, classes=train.classes))
    if o.augment != "none":
        train, bare = train.with_augment(o.augment), bare.with_augment(o.augment)
    return Inputs(train, validation, bare, whole.labels, train.classes, shared, o.workers)


def _opened(value: Any, role: str) -> str | ImageData | ImageSplit:
    if isinstance(value, (ImageData, ImageSplit)):
        return value
    if isinstance(value, (str, Path)):
        listed = Path(value).is_file() and str(value) not in data.SOURCES  # `data.load` knows folders, not lists
        return f"list:{value}" if listed else str(value)
    if isinstance(value, torch.utils.data.Dataset):
        return _from_dataset(value, role)
    parts = value if isinstance(value, (tuple, list)) else (value,)
    for part in parts:
        if isinstance(part, torch.Tensor):
            arguments.tensor(role, part, floating=False, what="images and labels with values")
    if isinstance(value, (tuple, list)) and len(value) == 2 and _is_array(value[0]):
        return data.from_arrays(value[0], value[1], name=role)
    if _is_array(value) and role == "target":
        return data.from_arrays(value, name=role)
    raise InvalidArgument(
        f"the {role} is a data spec, a folder, a list file, a dataset, "
        + ("(X, y)" if role == "source" else "X or (X, y)"),
        argument=role,
        given=type(value).__name__,
    )


def _check_reading(side: str | ImageData | ImageSplit, o: InputOptions, crop: int | None) -> None:
    """Refuse size, channels and crop that images which are read already do not have."""
    if isinstance(side, str):
        return
    about = side.description
    given = (checked_size(o.size) or tuple(about.size), o.channels or about.channels)
    if crop is not None or given != (tuple(about.size), about.channels):
        rule = "size, channels and crop are for specs and folders; images that are read already keep theirs"
        asked = f"size={o.size}, channels={o.channels}, crop={crop}"
        found = f"{about.name}: {about.size}, {about.channels} channels"
        raise InvalidArgument(rule, argument=asked, given=found, hint="resize arrays before, or leave these out")


def _is_array(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _from_dataset(value: Any, role: str) -> ImageSplit:
    rule, hint = "a dataset gives tensors of one size, each with its class number", "transform=ToTensor() and Resize"
    with refusing(rule, RuntimeError, TypeError, ValueError, argument=role, hint=hint):
        items = [value[i] for i in range(len(value))]
        if not items:
            raise InvalidArgument(f"the {role} has no images", argument=role, given="an empty dataset")
        pairs = [item if isinstance(item, (tuple, list)) else (item,) for item in items]
        images = torch.stack([torch.as_tensor(pair[0]) for pair in pairs])
        labels = torch.tensor([int(pair[1]) for pair in pairs]) if len(pairs[0]) > 1 else None
    return data.from_arrays(images, labels, name=role)


def _merged(images: ImageData) -> ImageSplit:
    """Return all images of all splits: a target without labels needs no division."""
    return images.train.joined(images.validation, images.test).with_augment("none")


def _restricted(whole: ImageSplit, classes: tuple[str, ...], target_classes: Any) -> tuple[ImageSplit, tuple[int, ...]]:
    whole = _renumbered(whole, classes)
    if target_classes is not None:
        chosen = data.chosen_classes(target_classes, classes)
        if bool((whole.labels < 0).any()):
            rule = "only a target with labels can be cut to some classes"
            raise InvalidArgument(rule, argument=f"target_classes={target_classes!r}")
        whole = whole.subset(torch.isin(whole.labels, torch.tensor(chosen)))
    known = whole.labels[whole.labels >= 0]
    if len(known) and int(known.max()) >= len(classes):
        rule = f"target labels count the source's {len(classes)} classes"
        raise InvalidArgument(rule, given=f"a label {int(known.max())}")
    return whole, tuple(sorted(set(known.tolist())))


def _renumbered(target: ImageSplit, classes: tuple[str, ...]) -> ImageSplit:
    """Return the target with its labels counting the source's classes, by name where both sides have names."""
    names = target.classes
    if names == classes[: len(names)] or any(n == tuple(map(str, range(len(n)))) for n in (names, classes)):
        return target
    unknown = [name for name in names if name not in classes]
    if unknown:
        rule, hint = "the source must have every class of the target", close_matches(unknown[0], classes)
        raise InvalidArgument(rule, argument=f"target classes {', '.join(names)}", given=unknown[0], hint=hint)
    return target.with_labels(torch.tensor([*map(classes.index, names), -1])[target.labels], classes)


def _divided(split: ImageSplit, share: float, seed: int) -> tuple[ImageSplit, ImageSplit]:
    """Hold out ``share`` of every class with two images or more."""
    generator = torch.Generator().manual_seed(seed)
    held = torch.zeros(len(split), dtype=torch.bool)
    for label in split.labels.unique().tolist():
        rows = (split.labels == label).nonzero()[:, 0]
        count = min(len(rows) - 1, math.ceil(share * len(rows)))
        held[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return split.subset(~held), split.subset(held)


def _check(train: ImageSplit, target: ImageSplit) -> None:
    if len(train) == 0 or bool((train.labels < 0).any()):
        given = f"{len(train)} images, some unlabelled"
        raise InvalidArgument("the source needs labels", argument="source", given=given)
    present = train.labels.unique()
    if len(present) < 2:
        given = f"{len(present)} class in its training images"
        raise InvalidArgument("the source needs two classes or more", argument="source", given=given)
    if len(target) == 0:
        raise InvalidArgument("the target has no images", argument="target", given="0 images")
    ours, theirs = train.description, target.description
    if (ours.channels, tuple(ours.size)) != (theirs.channels, tuple(theirs.size)):
        rule = "source and target images have one size and one number of channels"
        argument = f"{ours.channels} channels, {ours.size[0]} x {ours.size[1]}"
        given = f"{theirs.channels} channels, {theirs.size[0]} x {theirs.size[1]}"
        hint = "size= and channels= change specs and folders; resize arrays before"
        raise InvalidArgument(rule, argument=argument, given=given, hint=hint)
