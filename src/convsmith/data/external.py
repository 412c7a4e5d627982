"""Data sets of other libraries: torchvision's by name, and Hugging Face's by name or local folder."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Hashable, Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from torch import Tensor

from convsmith.data.embedded import fingerprints
from convsmith.data.partition import TEST, TRAIN, VALIDATION, copies, official_parts
from convsmith.data.pictures import CHECKED_FILES, picture_tensor
from convsmith.data.places import data_home, downloaded
from convsmith.data.source import SOURCES, Material, Pictures, Request
from convsmith.errors import InvalidArgument, RunFailed, close_matches, require

Part = dict[str, Any]
_FLAG: dict[int, Part] = {TRAIN: {"train": True}, TEST: {"train": False}}
_TWO: dict[int, Part] = {TRAIN: {"split": "train"}, TEST: {"split": "test"}}
_THREE: dict[int, Part] = {**_TWO, VALIDATION: {"split": "val"}}
#: torchvision's classification sets and the arguments that pick their official parts
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
            asked=request.spec,
            given=repr(name),
            mend=close_matches(name, TORCHVISION),
        )
    home = request.root or data_home()
    parts = {part: downloaded(name, home, request.spec, **chosen) for part, chosen in TORCHVISION[name].items()}
    labels = {part: _torchvision_labels(held) for part, held in parts.items()}
    official = torch.cat([torch.full((len(labels[part]),), part) for part in parts])
    every = torch.cat(list(labels.values()))
    classes = _torchvision_classes(next(iter(parts.values())), every)
    arrays = [_torchvision_images(held) for held in parts.values()]
    source = f"torchvision.datasets.{name}, files in {home}"
    stacked = [a for a in arrays if a is not None]
    if len(stacked) == len(arrays):
        images = torch.cat(stacked)
        return Material(request.spec, classes, images, every, copies(fingerprints(images)), source, official)
    held_all = list(parts.values())
    offsets = np.cumsum([0] + [len(held) for held in held_all])

    def decode(position: int) -> Tensor:
        part = int(np.searchsorted(offsets, position, side="right")) - 1
        return picture_tensor(held_all[part][position - int(offsets[part])][0])

    names = tuple(f"{name} image {n}" for n in range(len(every)))
    return _decoded(request, decode, names, every, official, classes, source, None)


def _torchvision_labels(held: Any) -> Tensor:
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(held, attribute):
            values = np.asarray(getattr(held, attribute)).astype(np.int64)
            # QMNIST keeps eight numbers per image, the first being the class
            return torch.from_numpy(values if values.ndim == 1 else values[:, 0].copy())
    if hasattr(held, "_samples"):
        return torch.tensor([int(sample[1]) for sample in held._samples])
    return torch.tensor([int(held[n][1]) for n in range(len(held))])


def _torchvision_classes(held: Any, labels: Tensor) -> tuple[str, ...]:
    count = int(labels.max()) + 1
    names = tuple(str(n) for n in getattr(held, "classes", ()))
    if len(names) < count:
        return tuple(str(n) for n in range(count))
    # MNIST calls its classes "0 - zero"; the digit alone is what pairs with other digits
    return tuple(n.split(" - ")[0] for n in names) if all(" - " in n for n in names) else names


def _torchvision_images(held: Any) -> Tensor | None:
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


@SOURCES.register("hf", takes="NAME", extra="hub")
def hugging_face(request: Request) -> Material:
    """Any image data set of the Hugging Face hub, or a folder in one of its formats (extra `hub`).

    ``hf:NAME?config=C&image=COLUMN&label=COLUMN`` chooses where a set offers several.
    """
    name, _, query = request.argument.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - {"config", "image", "label"}):
        raise InvalidArgument("after ? stand config, image and label", asked=request.spec, given=", ".join(unknown))
    parts, notes = _hugging_face_parts(request, name, options.get("config"))
    features = next(iter(parts.values())).features
    datasets = require("datasets", "hub")
    pictures = [c for c, kind in features.items() if isinstance(kind, datasets.Image)]
    image = _column(request, "image", options, pictures, list(features))
    candidates = [c for c, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    label = _column(
        request, "label", options, candidates or [c for c in ("label", "labels") if c in features], features
    )
    raw = {part: held[label] for part, held in parts.items()}
    raw = {part: list(column) for part, column in raw.items()}
    hidden = [part for part, column in raw.items() if part != TRAIN and set(column) <= {-1, None}]
    for part in hidden:
        notes = (*notes, f"the {len(raw.pop(part))} images of an official part without labels are not read")
        parts.pop(part)
    classes, labels = _hugging_face_labels(request, getattr(features[label], "names", None), raw)
    held_all = [parts[part] for part in raw]
    offsets = np.cumsum([0] + [len(held) for held in held_all])
    names = tuple(f"{name} {part} row {n}" for part, held in parts.items() for n in range(len(held)))

    def decode(position: int) -> Tensor:
        part = int(np.searchsorted(offsets, position, side="right")) - 1
        try:
            return picture_tensor(held_all[part][position - int(offsets[part])][image])
        except (OSError, SyntaxError, ValueError) as error:
            raise RunFailed("an image cannot be read", given=f"{names[position]}: {error}") from error

    official = torch.cat([torch.full((len(parts[part]),), part) for part in raw])
    marks = copies(_stored_bytes(held_all, image, datasets))
    source = f"Hugging Face data set {name}"
    return _decoded(request, decode, names, labels, official, classes, source, marks, notes)


def _hugging_face_parts(request: Request, name: str, config: str | None) -> tuple[dict[int, Any], tuple[str, ...]]:
    """Return the official parts, and notes on parts that are not used."""
    datasets = require("datasets", "hub")
    folder = Path(name).expanduser()
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
                held = datasets.load_from_disk(str(folder))
            else:
                held = datasets.load_dataset(str(folder) if folder.is_dir() else name, config)
    except (OSError, ValueError, RuntimeError) as error:
        raise InvalidArgument(
            "the Hugging Face data set cannot be loaded",
            asked=request.spec,
            given=f"{type(error).__name__}: {error}",
            mend="check the name, connect to the network, or name a local folder",
        ) from error
    if not isinstance(held, dict):
        return {TRAIN: held}, ()
    chosen = official_parts(held)
    if not chosen and len(held) == 1:
        chosen = {TRAIN: next(iter(held))}
    if not chosen:
        raise InvalidArgument("one part must be called train", asked=request.spec, given=", ".join(map(str, held)))
    unused = [str(part) for part in held if part not in chosen.values()]
    return {part: held[key] for part, key in chosen.items()}, (
        f"parts not read: {', '.join(unused)}",
    ) if unused else ()


def _column(
    request: Request, kind: str, options: dict[str, str], candidates: Sequence[str], columns: Sequence[str]
) -> str:
    """Return the column asked for, or the only one that fits."""
    if kind in options:
        if options[kind] in columns:
            return options[kind]
        raise InvalidArgument(
            "no such column", asked=f"{request.spec}", given=options[kind], mend=close_matches(options[kind], columns)
        )
    if len(candidates) != 1:
        raise InvalidArgument(
            f"the data set has {len(candidates)} {kind} columns, not one",
            asked=request.spec,
            given=f"columns {', '.join(columns)}",
            mend=f"{request.spec}{'&' if '?' in request.spec else '?'}{kind}=COLUMN",
        )
    return candidates[0]


def _hugging_face_labels(
    request: Request, names: Sequence[str] | None, raw: dict[int, list[Any]]
) -> tuple[tuple[str, ...], Tensor]:
    values = [value for column in raw.values() for value in column]
    if any(value is None or value == -1 for value in values):
        raise InvalidArgument("every image of a used part has a label", asked=request.spec, given="None or -1")
    if names is not None:
        return tuple(names), torch.tensor(values, dtype=torch.int64)
    if all(isinstance(value, int) for value in values):
        return tuple(str(n) for n in range(max(values) + 1)), torch.tensor(values, dtype=torch.int64)
    found = sorted({str(value) for value in values})
    number = {name: n for n, name in enumerate(found)}
    return tuple(found), torch.tensor([number[str(value)] for value in values], dtype=torch.int64)


def _stored_bytes(parts: Sequence[Any], image: str, datasets: Any) -> Iterator[Hashable]:
    """Yield what identifies each stored picture without decoding it."""
    for number, held in enumerate(parts):
        stored = held.cast_column(image, datasets.Image(decode=False)).select_columns([image])
        for row, entry in enumerate(stored):
            value = entry[image]
            if value.get("bytes"):
                yield value["bytes"]
            else:
                path = Path(value["path"])
                yield path.read_bytes() if path.is_file() else (number, row)


def _decoded(
    request: Request,
    decode: Any,
    names: tuple[str, ...],
    labels: Tensor,
    official: Tensor,
    classes: tuple[str, ...],
    source: str,
    marks: Tensor | None,
    notes: tuple[str, ...] = (),
) -> Material:
    """Describe pictures that another library decodes; the first tells size and channels, the store checks the rest."""
    first = decode(0)
    if marks is None and len(names) <= CHECKED_FILES:
        marks = copies(decode(n).numpy().tobytes() for n in range(len(names)))
    elif marks is None:
        marks, notes = torch.arange(len(names)), (*notes, "copies of a picture were not looked for")
    channels = request.channels or len(first)
    pictures = Pictures(decode, names, channels, (first.shape[1], first.shape[2]))
    return Material(request.spec, classes, pictures, labels, marks, source, official, notes=notes)
