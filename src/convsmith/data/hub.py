"""Image data sets of the Hugging Face hub, or local folders in one of its formats (extra `hub`)."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import torch
from PIL import Image

from convsmith.data.partition import TRAIN, official_parts
from convsmith.data.source import SOURCES, Material, Request, numbered, quietly
from convsmith.data.torchvision_sets import Items
from convsmith.errors import InvalidArgument, close_matches, refusing, require
from convsmith.offline import cache_alone
from convsmith.registry import check_settings

#: beyond so many stored rows or bytes images are not looked at before they are needed
_LOOKED_ROWS, _LOOKED_BYTES = 200_000, 4 * 2**30


@SOURCES.register("hf", takes="NAME")
def hugging_face(request: Request) -> Material:
    """Any image data set of the Hugging Face hub, or a folder in one of its formats (extra `hub`).

    ``hf:NAME?config=C&image=COLUMN&label=COLUMN`` chooses where a set offers several. Streaming is refused.
    """
    datasets = require("datasets", "hub")
    name, _, query = request.argument.partition("?")
    options = dict(parse_qsl(query, keep_blank_values=True))
    if options.pop("streaming", "0") != "0":
        rule = "a stream cannot be divided by class, shuffled as a whole, shared out evenly and resumed exactly"
        hint = "without streaming the set is mapped from disk, not held in memory; or write shards for wds:SHARDS"
        raise InvalidArgument(rule, argument=request.spec, hint=hint)
    check_settings("a set of the hub", options, ("config", "image", "label"), argument=request.spec)
    parts, notes = _parts(request, name, options.get("config"))
    features = next(iter(parts.values())).features
    images = [column for column, feature in features.items() if isinstance(feature, datasets.Image)]
    image = _column(request, "image", options, images, list(features))
    labels = [column for column, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    labels = labels or [column for column in ("label", "labels") if column in features]
    label = _column(request, "label", options, labels, list(features))
    if not isinstance(features[label], datasets.Value | datasets.ClassLabel):
        raise InvalidArgument("every image has one label", argument=request.spec, given=f"{label}: {features[label]}")
    values = {part: list(held[label]) for part, held in parts.items()}
    for part in [part for part, column in values.items() if part != TRAIN and set(column) <= {-1, None}]:
        notes += (f"the {len(values.pop(part))} images of an official part without labels are not read",)
    every = [value for column in values.values() for value in column]
    if any(value is None or value == -1 for value in every):
        rule = "every image of a part that is used has a label"
        raise InvalidArgument(rule, argument=request.spec, given="None or -1")
    names = getattr(features[label], "names", None)
    classes, numbers = numbered(every, request) if names is None else (tuple(names), torch.tensor(every))
    official = torch.cat([torch.full((len(column),), part) for part, column in values.items()])
    with refusing("the column holds no images", NotImplementedError, ValueError, TypeError, argument=request.spec):
        pictures = Rows(name, [parts[part] for part in values], image)
    return Material(request.spec, classes, pictures, numbers, f"Hugging Face data set {name}", official, notes)


class Rows(Items):
    """Images in a column of several parts, opened from their stored bytes or files."""

    def __init__(self, title: str, parts: Sequence[Any], column: str) -> None:
        super().__init__(title, parts)
        kind = require("datasets", "hub").Image(decode=False)
        self.column = column
        self.rows = [held.select_columns([column]).cast_column(column, kind) for held in parts]
        looked = sum(held.data.nbytes for held in self.rows) <= _LOOKED_BYTES
        self.headers = looked and len(self) <= _LOOKED_ROWS

    def stored(self, position: int) -> bytes | None:
        part, row = self.place(position)
        entry = self.rows[part][row][self.column]
        if entry is None:
            raise ValueError("there is no image in this row")
        path = Path(entry.get("path") or "")
        return entry.get("bytes") or (path.read_bytes() if path.is_file() else None)

    def open(self, position: int) -> Image.Image:
        held = self.stored(position)
        if held is not None:
            return Image.open(io.BytesIO(held))
        part, row = self.place(position)  # inside an archive, which only the library can reach into
        return self.parts[part][row][self.column]


def _parts(request: Request, name: str, config: str | None) -> tuple[dict[int, Any], tuple[str, ...]]:
    """Load the set, from the hub, its cache or a folder; return its official parts and a note on the others."""
    datasets = require("datasets", "hub")
    folder = Path(name).expanduser()
    hint = "check the name, connect to the network, or name a local folder"
    if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
        held = quietly(request.spec, hint, datasets.load_from_disk, str(folder))
    else:
        read = datasets.load_dataset if folder.is_dir() else cache_alone()(datasets.load_dataset)
        held = quietly(request.spec, hint, read, str(folder) if folder.is_dir() else name, config)
    if not isinstance(held, dict):
        return {TRAIN: held}, ()
    chosen = official_parts(held) or ({TRAIN: next(iter(held))} if len(held) == 1 else {})
    if not chosen:
        raise InvalidArgument("one part must be called train", argument=request.spec, given=", ".join(map(str, held)))
    unused = [str(part) for part in held if part not in chosen.values()]
    notes = (f"parts not read: {', '.join(unused)}",) if unused else ()
    return {part: held[key] for part, key in chosen.items()}, notes


def _column(
    request: Request, kind: str, options: dict[str, str], candidates: Sequence[str], columns: Sequence[str]
) -> str:
    """Return the column asked for, or the only one that fits."""
    if kind in options:
        if options[kind] in columns:
            return options[kind]
        hint = close_matches(options[kind], columns)
        raise InvalidArgument("no such column", argument=request.spec, given=options[kind], hint=hint)
    if len(candidates) != 1:
        rule, given = f"the data set has {len(candidates)} {kind} columns, not one", f"columns {', '.join(columns)}"
        hint = f"{request.spec}{'&' if '?' in request.spec else '?'}{kind}=COLUMN"
        raise InvalidArgument(rule, argument=request.spec, given=given, hint=hint)
    return candidates[0]
