"""WebDataset tar shards on disk, by an index of their members: nothing is unpacked, every sample can be reached."""

from __future__ import annotations

import json
import re
import tarfile
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from convsmith.data.partition import TRAIN, official_parts
from convsmith.data.pictures import EXTENSIONS, Pictures
from convsmith.data.source import SOURCES, Material, Request, existing, numbered
from convsmith.errors import InvalidArgument, refusing

_LABELS = ("cls", "txt", "json")


class Members(Pictures):
    """Images inside uncompressed tar files: a shard, an offset and a length each."""

    def __init__(self, shards: list[str], place: np.ndarray) -> None:
        self.shards, self.place = shards, place

    def __len__(self) -> int:
        return len(self.place)

    def name(self, position: int) -> str:
        shard, offset, _ = self.place[position]
        return f"{self.shards[shard]} at byte {offset}"

    def stored(self, position: int) -> bytes:
        shard, offset, length = self.place[position]
        with Path(self.shards[shard]).open("rb") as file:
            file.seek(int(offset))
            return file.read(int(length))

    def length(self, position: int) -> int:
        return int(self.place[position, 2])


@SOURCES.register("wds", takes="SHARDS")
def webdataset(request: Request) -> Material:
    """WebDataset tar shards: ``wds:FOLDER``, ``wds:train-{000..015}.tar`` or a pattern with *.

    A sample is an image and a label (.cls, .txt, or "label" or "cls" in .json) with one stem; several parts are told
    by the first word of a shard's name (train-000.tar, val-000.tar). Streams from the network are refused.
    """
    shards = _shards(request)
    kinds = [re.split(r"[-_.]", Path(shard).name)[0].lower() for shard in shards]
    part_of = {name: part for part, name in official_parts(set(kinds)).items()}
    samples = [(number, *sample) for number, shard in enumerate(shards) for sample in _samples(shard, request)]
    if not samples:
        raise InvalidArgument("the shards hold no image", argument=request.spec, given=f"{len(shards)} files")
    pictures = Members(shards, np.array([place for *place, _ in samples], np.int64))
    official = torch.tensor([part_of.get(kinds[number], TRAIN) for number, *_ in samples])
    words = [word for *_, word in samples]
    missing = words.count(None)
    if 0 < missing < len(words):
        given = f"{missing} of {len(words)} samples without one"
        raise InvalidArgument("every sample has a label, or none", argument=request.spec, given=given)
    classes, labels = ((), torch.full((len(words),), -1)) if missing else numbered(words, request)
    return Material(request.spec, classes, pictures, labels, f"{len(shards)} tar shards", official)


def _shards(request: Request) -> list[str]:
    text = request.argument
    if re.match(r"[a-z]+://|pipe:", text):
        rule = "shards are read by an index, so that every image is seen once; a stream has none"
        raise InvalidArgument(rule, argument=request.spec, hint="copy the shards to a disk")
    base = request.root or Path()
    if (base / Path(text).expanduser()).is_dir():
        text = str(Path(text) / "*.tar")
    names, found = [text], re.search(r"\{(\d+)\.\.(\d+)\}", text)
    if found:
        numbers = (f"{n:0{len(found[1])}d}" for n in range(int(found[1]), int(found[2]) + 1))
        names = [text[: found.start()] + number + text[found.end() :] for number in numbers]
    paths = [base / Path(name).expanduser() for name in names]
    shards = [p for path in paths for p in (sorted(path.parent.glob(path.name)) if "*" in path.name else [path])]
    if not shards:
        raise InvalidArgument("no shard is there", argument=request.spec, given=text)
    return [str(existing(shard, request.spec, folder=False)) for shard in shards]


def _samples(shard: str, request: Request) -> Iterator[tuple[int, int, str | None]]:
    """Yield offset and length of every image of a shard with its label, None where it has none."""
    errors = (tarfile.TarError, UnicodeDecodeError, json.JSONDecodeError, OSError)
    rule, argument = "a shard is an uncompressed tar file", f"{request.spec}: {shard}"
    with refusing(rule, *errors, argument=argument), tarfile.open(shard, "r:") as tar:
        for _, members in groupby((member for member in tar if member.isfile()), lambda member: _split(member)[0]):
            picture, label = None, None
            for member in members:
                suffix = _split(member)[1]
                if f".{suffix.rpartition('.')[2]}" in EXTENSIONS and (picture is None or "." not in suffix):
                    picture = (member.offset_data, member.size)
                elif suffix in _LABELS:
                    held: Any = tar.extractfile(member)
                    label = _label(held.read().decode().strip(), suffix)
            if picture is not None:
                yield (*picture, label)


def _split(member: tarfile.TarInfo) -> tuple[str, str]:
    """Return what names the sample of a member, and the rest of its name."""
    folder, slash, name = member.name.rpartition("/")
    stem, _, suffix = name.partition(".")
    return f"{folder}{slash}{stem}", suffix.lower()


def _label(text: str, suffix: str) -> str | None:
    if suffix != "json":
        return text
    held = json.loads(text)
    known = held if isinstance(held, dict) else {}
    return next((str(known[name]) for name in ("label", "cls", "class") if name in known), None)
