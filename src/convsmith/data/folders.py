"""Data sets that are folders or lists of picture files."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from convsmith.data.partition import TRAIN, official_parts
from convsmith.data.pictures import EXTENSIONS, files
from convsmith.data.places import existing
from convsmith.data.source import SOURCES, Material, Request
from convsmith.data.survey import survey
from convsmith.errors import InvalidArgument


@dataclass
class Listing:
    """Files found in a folder, in order, with the class name of each and the split it lies in."""

    paths: list[Path] = field(default_factory=list)
    classes: list[str] = field(default_factory=list)
    official: list[int] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)

    def add_folder(self, folder: Path, name: str, part: int) -> int:
        """Add every picture under ``folder``, at any depth, as class ``name``; return how many there are."""
        before = len(self.paths)
        for place, inner, names in os.walk(folder, followlinks=True):
            inner[:] = sorted(n for n in inner if not n.startswith("."))
            for file in sorted(names):
                if file.startswith("."):
                    continue
                path = Path(place) / file
                if path.suffix.lower() in EXTENSIONS:
                    self.paths.append(path)
                    self.classes.append(name)
                    self.official.append(part)
                else:
                    self.others.append(path)
        return len(self.paths) - before

    def notes(self) -> tuple[str, ...]:
        """Return one line on the files that are not pictures by their names."""
        if not self.others:
            return ()
        kinds = Counter(path.suffix or "(none)" for path in self.others)
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
        return (f"{len(self.others)} files without an image extension are not read: {told}",)


def shortened(names: Sequence[str], most: int = 10) -> str:
    """Return the names with commas between, cut after ``most``."""
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")


def subfolders(folder: Path) -> list[Path]:
    """Return the folders directly in ``folder``, sorted by name, without hidden ones."""
    return sorted((p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")), key=lambda p: p.name)


def divided(folder: Path) -> dict[int, Path]:
    """Return the train, validation and test sub-folders if ``folder`` has ``train`` and one of the others, else {}."""
    names = {path.name: path for path in subfolders(folder)}
    parts = {part: names[name] for part, name in official_parts(names).items()}
    return parts if len(parts) > 1 else {}


@SOURCES.register("imagefolder", takes="PATH", extra=None)
def imagefolder(request: Request) -> Material:
    """Pictures in one folder per class, or such folders inside train, val and test."""
    folder = existing(request.argument, request.spec, folder=True)
    listing, parts = Listing(), divided(folder) or {TRAIN: folder}
    classes = [path.name for path in subfolders(parts[TRAIN])]
    for part, place in parts.items():
        unknown = [path.name for path in subfolders(place) if path.name not in classes]
        if unknown:
            raise InvalidArgument(
                "every class needs training images",
                argument=f"the classes of {parts[TRAIN]}",
                given=f"{place} has also {shortened(unknown)}",
            )
        found = {path.name: listing.add_folder(path, path.name, part) for path in subfolders(place)}
        empty = [name for name, count in found.items() if count == 0]
        if part == TRAIN and empty and any(found.values()):
            raise InvalidArgument("a class folder holds no picture", argument=request.spec, given=shortened(empty))
    _check_found(request, folder, listing, classes)
    return _material(request, listing, tuple(classes), f"pictures in {folder}")


def _check_found(request: Request, folder: Path, listing: Listing, classes: Sequence[str]) -> None:
    if not listing.paths:
        loose = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
        pictures = sum(p.suffix.lower() in EXTENSIONS for p in loose)
        kinds = sorted({p.suffix or "(none)" for p in [*listing.others, *loose]})
        raise InvalidArgument(
            "the folder holds no picture in a class folder",
            argument=f"{request.spec}: files ending in {' '.join(sorted(EXTENSIONS))} in one sub-folder per class",
            given=f"{folder}: {len(classes)} sub-folders, {len(loose)} files, endings {', '.join(kinds) or 'none'}",
            hint=f"images:{folder} reads {pictures} pictures without classes" if pictures else None,
        )
    if len(classes) < 2:
        raise InvalidArgument(
            "a data set with classes has two or more",
            argument=request.spec,
            given=f"{folder}: the one class folder {classes[0]!r}",
            hint=f"add class folders, or images:{folder} for pictures without classes",
        )


@SOURCES.register("images", takes="PATH", extra=None)
def images(request: Request) -> Material:
    """Pictures in a folder, at any depth, without classes: the unlabelled side of an adaptation."""
    folder = existing(request.argument, request.spec, folder=True)
    listing = Listing()
    if not listing.add_folder(folder, "", TRAIN):
        kinds = sorted({p.suffix or "(none)" for p in listing.others})
        raise InvalidArgument(
            "the folder holds no picture",
            argument=f"{request.spec}: files ending in {' '.join(sorted(EXTENSIONS))}",
            given=f"{folder}: {len(listing.others)} files, endings {', '.join(kinds) or 'none'}",
        )
    return _material(request, listing, (), f"unlabelled pictures in {folder}")


@SOURCES.register("list", takes="FILE", extra=None)
def listed(request: Request) -> Material:
    """Pictures named in a text file, a path and a label on each line."""
    file = existing(request.argument, request.spec, folder=False)
    base = request.root or file.parent
    listing, labels = Listing(), []
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidArgument("a list is a text file", argument=request.spec, given=f"{file}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.rsplit(maxsplit=1)
        if len(words) != 2:
            raise InvalidArgument(
                "each line is a path, a space and a label",
                argument=request.spec,
                given=f"{file}, line {number}: {line!r}",
            )
        listing.paths.append(base / words[0].strip())
        listing.official.append(TRAIN)
        labels.append(words[1])
    if not labels:
        raise InvalidArgument("the list is empty", argument=request.spec, given=str(file))
    classes = _list_classes(labels, request, file)
    listing.classes = [str(int(label)) for label in labels] if classes[0] == "0" and _whole(labels) else labels
    if len(set(listing.classes)) < 2:
        raise InvalidArgument("a data set with classes has two or more", argument=request.spec, given=set(labels))
    return _material(request, listing, classes, f"pictures listed in {file}")


def _whole(labels: Sequence[str]) -> bool:
    return all(label.lstrip("-").isascii() and label.lstrip("-").isdigit() for label in labels)


def _list_classes(labels: Sequence[str], request: Request, file: Path) -> tuple[str, ...]:
    """Whole numbers keep their meaning: label 3 is class 3, also if the file has no 2. Names are sorted."""
    if not _whole(labels):
        return tuple(sorted(set(labels)))
    numbers = [int(label) for label in labels]
    if min(numbers) < 0:
        raise InvalidArgument("labels count from 0", argument=request.spec, given=f"{file}: label {min(numbers)}")
    return tuple(str(n) for n in range(max(numbers) + 1))


def _material(request: Request, listing: Listing, classes: tuple[str, ...], source: str) -> Material:
    found = survey(files(listing.paths), request)
    number = {name: n for n, name in enumerate(classes)}
    good = list(found.good)
    labels = torch.tensor([number.get(listing.classes[n], -1) for n in good])
    official = torch.tensor([listing.official[n] for n in good])
    if classes:
        training = {listing.classes[n] for n in good if listing.official[n] == TRAIN}
        lost = sorted(
            {c for c, part in zip(listing.classes, listing.official, strict=True) if part == TRAIN} - training
        )
        if lost:
            raise InvalidArgument(
                "every picture of a class is broken",
                argument=request.spec,
                given=", ".join(lost),
                hint="hint the files",
            )
    return Material(
        request.spec,
        classes,
        found.pictures,
        labels,
        found.copies,
        source,
        official,
        torch.tensor(good),
        found.skipped,
        found.notes + listing.notes(),
    )
