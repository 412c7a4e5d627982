"""The flags that choose images, shared by every verb that reads some."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Computation, option
from convsmith.cli.shell.progress import progress
from convsmith.errors import InvalidArgument

if TYPE_CHECKING:
    from convsmith.data import DataDescription, ImageData


@dataclass(frozen=True, kw_only=True)
class DataOptions(Computation):
    """Which images, and how they are read."""

    data: str = option(
        help="digits, mnist-5k, fashion-mnist, imagefolder:PATH, torchvision:NAME or hf:NAME", metavar="DATA"
    )
    size: int | None = option(
        None, "side of the images in pixels (default: their own)", group="images", metavar="PIXELS"
    )
    channels: int | None = option(None, "1 or 3 (default: what the images have)", group="images", metavar="1|3")
    broken: Literal["refuse", "skip"] = option("refuse", "image files that cannot be read", group="images")
    data_root: str | None = option(None, "folder of downloaded data sets", group="images", metavar="DIR")
    limit: int | None = option(None, "use at most so many images of each split", group="images", metavar="N")
    batch_size: int = option(64, "images per batch (and process)", group="images", metavar="N")


def check(arguments: DataOptions) -> None:
    """Refuse numbers that cannot be, before anything is read."""
    for name, value in (
        ("--batch-size", arguments.batch_size),
        ("--limit", arguments.limit),
        ("--size", arguments.size),
    ):
        if value is not None and value < 1:
            raise InvalidArgument("must be 1 or more", argument=name, given=value)


def load(arguments: DataOptions, *, augment: str = "none", like: DataDescription | None = None) -> ImageData:
    """Load the images; ``like`` gives size, channels and normalisation of the data a model was trained on."""
    from convsmith import data

    check(arguments)
    size, channels = arguments.size, arguments.channels
    with progress("read images") as callback:
        loaded = data.load(
            arguments.data,
            size=size if size is not None or like is None else like.size,
            channels=channels if channels is not None or like is None else like.channels,
            seed=arguments.seed,
            augment=augment,
            broken=arguments.broken,
            root=arguments.data_root,
            progress=callback,
        )
    for file in loaded.skipped:
        terminal.complain("warning", f"skipped a broken image: {file.path}: {file.reason}")
    for note in loaded.notes:
        terminal.complain("note", note)
    if like is not None:
        _check_classes(loaded, like)
        loaded = loaded.with_normalisation(like.mean, like.std)
    return loaded if arguments.limit is None else limited(loaded, arguments.limit, arguments.seed)


def limited(loaded: ImageData, most: int, seed: int) -> ImageData:
    """Keep at most ``most`` images of each split, drawn by ``seed``."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for name, split in loaded.splits.items():
        chosen = torch.randperm(len(split), generator=generator)[:most].sort().values
        kept[name] = split.subset(chosen)
    return loaded.map(**kept)


def _check_classes(loaded: ImageData, like: DataDescription) -> None:
    if like.classes and loaded.classes != like.classes:
        missing = [name for name in loaded.classes if name not in like.classes][:5]
        raise InvalidArgument(
            "the data set has other classes than the model was trained on",
            argument=f"{loaded.description.name}: {len(loaded.classes)} classes",
            given=f"a model of {len(like.classes)} classes of {like.name}"
            + (f"; unknown to it: {', '.join(missing)}" if missing else ""),
            hint="take the data set the model was trained on, or convsmith adapt",
        )
