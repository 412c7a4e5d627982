"""The flags that choose images, shared by every verb that reads some."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import classifier, terminal
from convsmith.cli.shell.options import MOST_PIXELS, MOST_WORKERS, Computation, Listing, option
from convsmith.cli.shell.progress import progress
from convsmith.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import nn

    from convsmith.data import DataDescription, ImageData, Preprocessing

image_option = partial(option, group="images")


@dataclass(frozen=True, kw_only=True)
class ImageOptions(Listing):
    """How images are read."""

    size: int | None = image_option(
        None,
        "side of the images in pixels (default: the network's, or their own)",
        metavar="PIXELS",
        least=1,
        most=MOST_PIXELS,
    )
    channels: int | None = image_option(None, "1 or 3 (default: what the images have)", metavar="1|3")
    broken: Literal["refuse", "skip"] = image_option("refuse", "image files that cannot be read")
    check_files: bool = image_option(False, "decode every file before work, in sets of any size")
    data_root: str | None = image_option(None, "folder of downloaded data sets", metavar="DIR")


@dataclass(frozen=True, kw_only=True)
class DataOptions(ImageOptions, Computation):
    """Which images, and how they are read."""

    data: str = option(
        help="a folder, digits, mnist-5k, fashion-mnist, list:FILE, torchvision:NAME, timm:NAME, hf:NAME, wds:SHARDS",
        metavar="DATA",
    )
    class_map: str | None = image_option(None, "lines of CLASS=CLASS: the data's name, the network's", metavar="FILE")
    limit: int | None = image_option(None, "use at most so many images of each split", metavar="N", least=1)


@dataclass(frozen=True, kw_only=True)
class BatchOptions(Computation):
    """How images are given out."""

    batch_size: int = image_option(64, "images per batch (and process)", metavar="N", least=1)
    num_workers: int = image_option(
        0, "processes that read and change images ahead", metavar="N", least=0, most=MOST_WORKERS
    )


@dataclass(frozen=True, kw_only=True)
class LoaderOptions(DataOptions, BatchOptions):
    """Which images, how they are read and given out."""


def read(arguments: Any, **settings: Any) -> ImageData:
    """Read the images as the flags say, and say what is left out; ``settings`` are more arguments of `data.load`."""
    from convsmith import data

    with progress("read images") as callback:
        loaded = data.load(
            arguments.data,
            size=arguments.size,
            channels=arguments.channels,
            seed=arguments.seed,
            broken=arguments.broken,
            root=arguments.data_root,
            check=arguments.check_files,
            progress=callback,
            **settings,
        )
    for file in loaded.skipped:
        terminal.complain("warning", f"skipped a broken image: {file}")
    for note in loaded.notes:
        terminal.complain("note", note)
    return loaded


def load(
    arguments: DataOptions,
    *,
    augment: str = "none",
    like: DataDescription | None = None,
    preprocessing: Preprocessing | None = None,
    **settings: Any,
) -> ImageData:
    """Load the images.

    ``like`` describes the data a network was trained on: its preprocessing is used and its classes count the labels.
    ``preprocessing`` alone is that of a network whose head is made anew; ``settings`` are the augmentation's.
    """
    from convsmith.data.classes import matched_classes

    if arguments.class_map is not None and (like is None or not like.classes):
        rule = "classes of data are mapped to those of a trained network, and there are none here"
        raise InvalidArgument(rule, argument="class_map", given=arguments.class_map, hint="leave it out")
    shown = preprocessing if like is None else like.preprocessing
    loaded = read(arguments, augment=augment, preprocessing=shown, **settings)
    if like is not None and like.classes:  # labels count the network's classes, which may be more than the data's
        numbers = matched_classes(loaded.classes, like.classes, arguments.class_map) if loaded.classes else ()
        loaded = loaded.renumbered(numbers, like.classes)
    if arguments.limit is None:
        return loaded
    return loaded.map(**{n: split.drawn(arguments.limit, arguments.seed) for n, split in loaded.splits.items()})


def load_with_network(arguments: Any) -> tuple[nn.Module, DataDescription, ImageData | None]:
    """Load MODEL, in eval mode on its device, how it sees images, and ``--data`` seen so, None without the flag."""
    from convsmith.training import resolve_device

    device = resolve_device(arguments.device)
    loaded = classifier.load(arguments.model, weights=arguments.weights, device=str(device))
    about = classifier.trained_on(loaded)
    return loaded.model.eval(), about, load(arguments, like=about) if arguments.data else None
