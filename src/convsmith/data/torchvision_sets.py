"""Classification sets of torchvision by name, from files under a root or downloaded there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convsmith.data.embedded import fingerprints
from convsmith.data.partition import TEST, TRAIN, VALIDATION, copies
from convsmith.data.pictures import Originals
from convsmith.data.places import data_home, downloaded
from convsmith.data.source import SOURCES, Material, Request
from convsmith.data.survey import survey
from convsmith.errors import InvalidArgument, close_matches

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


@SOURCES.register("torchvision", takes="NAME", extra=None)
def torchvision_set(request: Request) -> Material:
    """Any classification set of torchvision, from files under the root or downloaded there."""
    name = request.argument
    if name not in TORCHVISION:
        raise InvalidArgument(
            "no torchvision set of images with classes has this name",
            argument=request.spec,
            given=repr(name),
            hint=close_matches(name, TORCHVISION),
        )
    home = request.root or data_home()
    parts = {part: downloaded(name, home, request.spec, **chosen) for part, chosen in TORCHVISION[name].items()}
    by_part = {part: labels_of(held) for part, held in parts.items()}
    official = torch.cat([torch.full((len(labels),), part) for part, labels in by_part.items()])
    labels = torch.cat(list(by_part.values()))
    classes = _classes(next(iter(parts.values())), labels)
    source = f"torchvision.datasets.{name}, files in {home}"
    arrays = [images_of(held) for held in parts.values()]
    stacked = [array for array in arrays if array is not None]
    if len(stacked) == len(arrays):
        images = torch.cat(stacked)
        return Material(request.spec, classes, images, labels, copies(fingerprints(images)), source, official)
    found = survey(_originals(name, list(parts.values())), request)
    good = torch.tensor(found.good)
    return Material(
        request.spec,
        classes,
        found.pictures,
        labels[good],
        found.copies,
        source,
        official[good],
        good,
        found.skipped,
        found.notes,
    )


def _originals(name: str, parts: Sequence[Any]) -> Originals:
    """Return the pictures of several parts, which only torchvision can open, and only by decoding."""
    starts = np.cumsum([0] + [len(held) for held in parts])

    def opened(position: int) -> Image.Image:
        part = int(np.searchsorted(starts, position, side="right")) - 1
        return parts[part][position - int(starts[part])][0]

    names = tuple(f"{name} image {n}" for n in range(int(starts[-1])))
    return Originals(names, opened, lambda _position, _count: None, headers=False)


def labels_of(held: Any) -> Tensor:
    """Return the class of every image [N], without decoding any where the set keeps them apart."""
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(held, attribute):
            values = np.asarray(getattr(held, attribute)).astype(np.int64)
            # QMNIST keeps eight numbers per image, the first being the class
            return torch.from_numpy(values if values.ndim == 1 else values[:, 0].copy())
    if hasattr(held, "_samples"):
        return torch.tensor([int(sample[1]) for sample in held._samples])
    return torch.tensor([int(held[n][1]) for n in range(len(held))])


def _classes(held: Any, labels: Tensor) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    names = tuple(str(n) for n in getattr(held, "classes", ()))
    if len(names) < count:
        return tuple(str(n) for n in range(count))
    # MNIST calls its classes "0 - zero"; the digit alone is what pairs with other digits
    return tuple(n.split(" - ")[0] for n in names) if all(" - " in n for n in names) else names


def images_of(held: Any) -> Tensor | None:
    """Return all images of a set that holds them in one array, as uint8 [N, C, H, W], else None."""
    data = getattr(held, "data", None)
    if not isinstance(data, Tensor | np.ndarray):
        return None
    images = torch.as_tensor(data)
    if images.dtype != torch.uint8 or images.ndim not in (3, 4):
        return None
    if images.ndim == 3:
        return images[:, None]
    return images if images.shape[1] in (1, 3) else images.permute(0, 3, 1, 2).contiguous()
