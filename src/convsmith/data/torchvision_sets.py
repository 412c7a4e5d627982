"""Classification sets by torchvision's names, and any data set of timm's ``create_dataset``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convsmith.data.partition import TEST, TRAIN, VALIDATION
from convsmith.data.pictures import Pictures
from convsmith.data.source import SOURCES, Material, Request, data_home, quietly
from convsmith.errors import InvalidArgument, close_matches
from convsmith.offline import cache_alone

Part = dict[str, Any]
_FLAG: dict[int, Part] = {TRAIN: {"train": True}, TEST: {"train": False}}
_TWO: dict[int, Part] = {TRAIN: {"split": "train"}, TEST: {"split": "test"}}
_THREE: dict[int, Part] = {**_TWO, VALIDATION: {"split": "val"}}
#: the sets and the arguments that pick their official parts
TORCHVISION: dict[str, dict[int, Part]] = {
    **dict.fromkeys(("CIFAR10", "CIFAR100", "FashionMNIST", "KMNIST", "MNIST", "QMNIST", "USPS"), _FLAG),
    **dict.fromkeys(("Food101", "GTSRB", "STL10", "SVHN"), _TWO),
    **dict.fromkeys(("DTD", "FGVCAircraft", "Flowers102", "PCAM", "RenderedSST2"), _THREE),
    "Country211": {**_TWO, VALIDATION: {"split": "valid"}},
    "EMNIST": {TRAIN: {"split": "balanced", "train": True}, TEST: {"split": "balanced", "train": False}},
    "EuroSAT": {TRAIN: {}},
    "Imagenette": {TRAIN: {"split": "train"}, TEST: {"split": "val"}},
    "OxfordIIITPet": {TRAIN: {"split": "trainval"}, TEST: {"split": "test"}},
}

#: timm's names for class folders under the root
_FOLDERS = ("folder", "image_folder")


class Items(Pictures):
    """Images of map-style data sets that give (image, label), one after another."""

    headers = False

    def __init__(self, title: str, parts: Sequence[Any]) -> None:
        self.title, self.parts = title, parts
        self.starts = np.cumsum([0] + [len(held) for held in parts])

    def __len__(self) -> int:
        return int(self.starts[-1])

    def place(self, position: int) -> tuple[int, int]:
        """Return the part and the row in it."""
        part = int(np.searchsorted(self.starts, position, side="right")) - 1
        return part, position - int(self.starts[part])

    def name(self, position: int) -> str:
        return f"{self.title} image {position}"

    def open(self, position: int) -> Image.Image:
        part, row = self.place(position)
        held = self.parts[part]
        # timm puts the next image in the place of one that it cannot read, and shows what lies under transparency
        return Image.open(held.reader[row][0]) if hasattr(held, "reader") else held[row][0]


@SOURCES.register("torchvision", takes="NAME")
def torchvision_set(request: Request) -> Material:
    """Any classification set of torchvision, from files under the root or downloaded there."""
    import torchvision

    name = request.argument
    if name not in TORCHVISION:
        rule, hint = "no torchvision set of images with classes has this name", close_matches(name, TORCHVISION)
        raise InvalidArgument(rule, argument=request.spec, given=repr(name), hint=hint)
    home = request.root or data_home()
    read = partial(getattr(torchvision.datasets, name), str(home))
    hint = f"connect to the network, or put its files under {home} (root=, --data-root or CONVSMITH_DATA name another)"
    parts = {}
    for part, chosen in TORCHVISION[name].items():
        try:
            parts[part] = read(**chosen, download=False)
        except (RuntimeError, OSError):
            home.mkdir(parents=True, exist_ok=True)
            parts[part] = quietly(request.spec, hint, read, **chosen, download=True)
    return material(request, parts, f"torchvision.datasets.{name}, files in {home}")


@SOURCES.register("timm", takes="NAME")
def timm_set(request: Request) -> Material:
    """Any data set of timm's `create_dataset` by its name (folder, torch/cifar10, hfds/..., wds/..., tfds/...)."""
    from timm.data import create_dataset

    name, home = request.argument, request.root or data_home()
    if "/" not in name and name not in _FOLDERS:
        rule, hint = "timm takes a name without a library before it for a folder", f"torch/{name}, hfds/{name}, folder"
        raise InvalidArgument(rule, argument=request.spec, given=repr(name), hint=hint)
    create = cache_alone()(create_dataset) if name.startswith(("hfds/", "hfids/")) else create_dataset
    parts, hint = {}, f"root= or --data-root names the folder, now {home}"
    for part, split in ((TRAIN, "train"), (TEST, "validation")):
        parts[part] = quietly(request.spec, hint, create, name, root=str(home), split=split, download=True)
        if not hasattr(parts[part], "__getitem__"):
            rule = "a stream is not divided, shuffled as a whole or resumed"
            raise InvalidArgument(rule, argument=request.spec, hint="wds:SHARDS reads tar shards by an index")
    if name in _FOLDERS and parts[TEST].reader.root == str(home):  # no folder for it: timm takes the whole
        del parts[TEST]
    return material(request, parts, f"timm.data.create_dataset({name!r}), files in {home}")


def material(request: Request, parts: dict[int, Any], source: str) -> Material:
    """Return the data set of map-style sets of (image, label), by part."""
    by_part = {part: labels_of(held) for part, held in parts.items()}
    official = torch.cat([torch.full((len(labels),), part) for part, labels in by_part.items()])
    labels = torch.cat(list(by_part.values()))
    classes = _classes(next(iter(parts.values())), labels)
    stacked = [array for array in map(images_of, parts.values()) if array is not None]
    whole = len(stacked) == len(parts)
    images = torch.cat(stacked) if whole else Items(request.argument, list(parts.values()))
    if len(images) != len(labels):
        given = f"{len(images)} images, {len(labels)} labels"
        raise InvalidArgument("images have one label each", argument=request.spec, given=given)
    return Material(request.spec, classes, images, labels, source, official)


def labels_of(held: Any) -> Tensor:
    """Return the class of every image [N], without decoding any where the set keeps them apart."""
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(held, attribute):
            values = np.asarray(getattr(held, attribute)).astype(np.int64)
            # QMNIST keeps eight numbers per image, the first being the class
            return torch.from_numpy(values if values.ndim == 1 else values[:, 0].copy())
    samples = getattr(held, "_samples", None) or getattr(getattr(held, "reader", None), "samples", None)
    return torch.tensor([int(sample[1]) for sample in (samples or map(held.__getitem__, range(len(held))))])


def _classes(held: Any, labels: Tensor) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    known: Any = getattr(getattr(held, "reader", None), "class_to_idx", None) or getattr(held, "classes", ())
    names = tuple(map(str, known))
    if not names:
        return tuple(map(str, range(count)))
    if len(names) < count:
        rule = f"labels run from 0 to {len(names) - 1}"
        raise InvalidArgument(rule, argument=type(held).__name__, given=f"a label of {count - 1}")
    # MNIST calls its classes "0 - zero"; the digit alone is what pairs with other digits
    return tuple(n.split(" - ")[0] for n in names) if all(" - " in n for n in names) else names


def images_of(held: Any) -> Tensor | None:
    """Return all images of a set that holds them in one array, as uint8 [N, C, H, W], else None."""
    data = getattr(held, "data", None)
    images = torch.as_tensor(data) if isinstance(data, Tensor | np.ndarray) else torch.zeros(())
    if images.dtype != torch.uint8 or images.ndim not in (3, 4):
        return None
    channels_first = images[:, None] if images.ndim == 3 else images
    return channels_first if channels_first.shape[1] in (1, 3) else images.permute(0, 3, 1, 2).contiguous()
