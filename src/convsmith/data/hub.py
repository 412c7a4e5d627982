"""Image data sets of the Hugging Face hub, or local folders in one of its formats (extra `hub`)."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convsmith.data.partition import TRAIN, official_parts
from convsmith.data.pictures import Originals
from convsmith.data.source import SOURCES, Material, Request
from convsmith.data.survey import survey
from convsmith.errors import InvalidArgument, close_matches, require

#: beyond so many stored rows or bytes pictures are not looked at before they are needed
_LOOKED_ROWS, _LOOKED_BYTES = 200_000, 4 * 2**30


@dataclass(frozen=True)
class _Parts:
    """The official parts of a set, and notes on parts that are not used."""

    held: dict[int, Any]
    notes: tuple[str, ...] = ()


@SOURCES.register("hf", takes="NAME", extra="hub")
def hugging_face(request: Request) -> Material:
    """Any image data set of the Hugging Face hub, or a folder in one of its formats (extra `hub`).

    ``hf:NAME?config=C&image=COLUMN&label=COLUMN`` chooses where a set offers several.
    """
    datasets = require("datasets", "hub")
    name, _, query = request.argument.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(set(options) - {"config", "image", "label"}):
        raise InvalidArgument("after ? stand config, image and label", argument=request.spec, given=", ".join(unknown))
    parts = _parts(request, name, options.get("config"))
    features = next(iter(parts.held.values())).features
    of_kind = {
        kind: [column for column, feature in features.items() if isinstance(feature, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    }
    image = _column(request, "image", options, of_kind[datasets.Image], list(features))
    named = [column for column in ("label", "labels") if column in features]
    label = _column(request, "label", options, of_kind[datasets.ClassLabel] or named, list(features))
    parts, values = _labelled(parts, label)
    classes, labels = _classes(request, getattr(features[label], "names", None), values)
    official = torch.cat([torch.full((len(column),), part) for part, column in values.items()])
    found = survey(_originals(name, list(parts.held.values()), image), request)
    good = torch.tensor(found.good)
    return Material(
        request.spec,
        classes,
        found.pictures,
        labels[good],
        found.copies,
        f"Hugging Face data set {name}",
        official[good],
        good,
        found.skipped,
        found.notes + parts.notes,
    )


def _parts(request: Request, name: str, config: str | None) -> _Parts:
    """Load the set, from the hub, its cache or a folder, without printing."""
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
            argument=request.spec,
            given=f"{type(error).__name__}: {error}",
            hint="check the name, connect to the network, or name a local folder",
        ) from error
    if not isinstance(held, dict):
        return _Parts({TRAIN: held})
    chosen = official_parts(held)
    if not chosen and len(held) == 1:
        chosen = {TRAIN: next(iter(held))}
    if not chosen:
        raise InvalidArgument("one part must be called train", argument=request.spec, given=", ".join(map(str, held)))
    unused = [str(part) for part in held if part not in chosen.values()]
    notes = (f"parts not read: {', '.join(unused)}",) if unused else ()
    return _Parts({part: held[key] for part, key in chosen.items()}, notes)


def _column(
    request: Request, kind: str, options: dict[str, str], candidates: Sequence[str], columns: Sequence[str]
) -> str:
    """Return the column asked for, or the only one that fits."""
    if kind in options:
        if options[kind] in columns:
            return options[kind]
        raise InvalidArgument(
            "no such column", argument=request.spec, given=options[kind], hint=close_matches(options[kind], columns)
        )
    if len(candidates) != 1:
        raise InvalidArgument(
            f"the data set has {len(candidates)} {kind} columns, not one",
            argument=request.spec,
            given=f"columns {', '.join(columns)}",
            hint=f"{request.spec}{'&' if '?' in request.spec else '?'}{kind}=COLUMN",
        )
    return candidates[0]


def _labelled(parts: _Parts, label: str) -> tuple[_Parts, dict[int, list[Any]]]:
    """Return the parts that have labels, and the labels by part."""
    values = {part: list(held[label]) for part, held in parts.held.items()}
    hidden = [part for part, column in values.items() if part != TRAIN and set(column) <= {-1, None}]
    told = tuple(f"the {len(values[part])} images of an official part without labels are not read" for part in hidden)
    kept = {part: held for part, held in parts.held.items() if part not in hidden}
    return _Parts(kept, parts.notes + told), {part: values[part] for part in kept}


def _classes(
    request: Request, names: Sequence[str] | None, by_part: dict[int, list[Any]]
) -> tuple[tuple[str, ...], Tensor]:
    """Return class names and labels [N]; numbers keep their meaning, words are sorted."""
    values = [value for column in by_part.values() for value in column]
    if any(value is None or value == -1 for value in values):
        raise InvalidArgument(
            "every image of a part that is used has a label", argument=request.spec, given="None or -1"
        )
    if names is not None:
        return tuple(names), torch.tensor(values, dtype=torch.int64)
    if all(isinstance(value, int) for value in values):
        return tuple(str(n) for n in range(max(values) + 1)), torch.tensor(values, dtype=torch.int64)
    found = sorted({str(value) for value in values})
    number = {name: n for n, name in enumerate(found)}
    return tuple(found), torch.tensor([number[str(value)] for value in values], dtype=torch.int64)


def _originals(name: str, parts: Sequence[Any], image: str) -> Originals:
    """Return the pictures of several parts, opened from their stored bytes or files."""
    datasets = require("datasets", "hub")
    stored = [held.select_columns([image]).cast_column(image, datasets.Image(decode=False)) for held in parts]
    starts = np.cumsum([0] + [len(held) for held in parts])

    def place(position: int) -> tuple[int, int]:
        part = int(np.searchsorted(starts, position, side="right")) - 1
        return part, position - int(starts[part])

    def raw(position: int) -> bytes | None:
        part, row = place(position)
        entry = stored[part][row][image]
        if entry is None:
            raise ValueError("there is no image in this row")
        if entry.get("bytes"):
            return entry["bytes"]
        path = Path(entry.get("path") or "")
        return path.read_bytes() if path.is_file() else None

    def opened(position: int) -> Image.Image:
        held = raw(position)
        if held is not None:
            return Image.open(io.BytesIO(held))
        part, row = place(position)  # inside an archive, which only the library can reach into
        return parts[part][row][image]

    def tail(position: int, count: int | None) -> bytes | None:
        held = raw(position)
        return held if held is None or count is None else held[-count:]

    rows = int(starts[-1])
    looked = rows <= _LOOKED_ROWS and sum(held.data.nbytes for held in stored) <= _LOOKED_BYTES
    return Originals(tuple(f"{name} image {n}" for n in range(rows)), opened, tail, headers=looked)
