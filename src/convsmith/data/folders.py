"""Data sets that are folders or lists of image files."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from convsmith.data.partition import TRAIN, official_parts
from convsmith.data.pictures import EXTENSIONS, Files, printable, shortened
from convsmith.data.source import SOURCES, Material, Request, existing, numbered
from convsmith.errors import InvalidArgument

_ENDINGS = f"files ending in {' '.join(sorted(EXTENSIONS))}"


@dataclass
class Listing:
    """Files found in folders, in order, with the class number of each and the split it lies in.

    Every folder is visited once, whatever links lead to it; what is no regular file (a pipe, a device) is no image.
    """

    paths: list[bytes] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    official: list[int] = field(default_factory=list)
    others: Counter[str] = field(default_factory=Counter)
    visited: set[tuple[int, int]] = field(default_factory=set)

    def add_folder(self, folder: Path, label: int, part: int) -> int:
        """Add every image under ``folder``, at any depth, with this label; return how many there are."""
        before = len(self.paths)
        self.visited.add(_identity(folder))
        self.paths.extend(os.fsencode(path) for path in self._walk(str(folder)))
        count = len(self.paths) - before
        self.labels += [label] * count
        self.official += [part] * count
        return count

    def _walk(self, folder: str) -> Iterator[str]:
        inner = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                suffix = Path(entry.name).suffix
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    inner.append(entry.path)
                elif entry.is_file() and suffix.lower() in EXTENSIONS:
                    yield entry.path
                else:
                    self.others[suffix or "(none)"] += 1
        for path in inner:
            if _identity(path) not in self.visited:
                self.visited.add(_identity(path))
                yield from self._walk(path)

    def material(self, request: Request, classes: tuple[str, ...], source: str) -> Material:
        """Return the data set."""
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))
        note = f"{self.others.total()} files are not read, being no image or without an image extension: {told}"
        notes = (note,) if told else ()
        labels, official = torch.tensor(self.labels), torch.tensor(self.official)
        return Material(request.spec, classes, Files(self.paths), labels, source, official, notes)


def _identity(folder: str | Path) -> tuple[int, int]:
    about = Path(folder).stat()
    return about.st_dev, about.st_ino


def subfolders(folder: Path) -> dict[str, Path]:
    """Return the folders directly in ``folder`` by name (in one form of Unicode), sorted, without hidden ones."""
    found = sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))
    return dict(sorted((unicodedata.normalize("NFC", printable(p.name)), p) for p in found))


def divided(folder: Path) -> dict[int, Path]:
    """Return the train, validation and test sub-folders if ``folder`` has ``train`` and one of the others, else {}."""
    names = subfolders(folder)
    parts = {part: names[name] for part, name in official_parts(names).items()}
    return parts if len(parts) > 1 else {}


@SOURCES.register("imagefolder", takes="PATH")
def imagefolder(request: Request) -> Material:
    """Images in one folder per class, or such folders inside train, val and test."""
    folder = existing(request.argument, request.spec, folder=True)
    parts = divided(folder) or {TRAIN: folder}
    classes = list(subfolders(parts[TRAIN]))
    listing = Listing()
    listing.visited.update(
        _identity(p) for place in (folder, *parts.values()) for p in (place, *subfolders(place).values())
    )
    for part, place in parts.items():
        unknown = [name for name in subfolders(place) if name not in classes]
        if unknown:
            rule, given = "every class needs training images", f"{place} has also {shortened(unknown)}"
            raise InvalidArgument(rule, argument=f"the classes of {parts[TRAIN]}", given=given)
        found = {n: listing.add_folder(path, classes.index(n), part) for n, path in subfolders(place).items()}
        empty = [name for name, count in found.items() if count == 0]
        if part == TRAIN and empty and any(found.values()):
            raise InvalidArgument("a class folder holds no image", argument=request.spec, given=shortened(empty))
    if not listing.paths:
        raise _no_pictures(request, folder, listing, len(classes))
    if len(classes) < 2:
        given = f"{folder}: the one class folder {classes[0]!r}"
        hint = f"add class folders, or images:{folder} for images without classes"
        raise InvalidArgument("a data set with classes has two or more", argument=request.spec, given=given, hint=hint)
    return listing.material(request, tuple(classes), f"images in {folder}")


def _no_pictures(request: Request, folder: Path, listing: Listing, classes: int) -> InvalidArgument:
    loose = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    pictures = sum(p.suffix.lower() in EXTENSIONS for p in loose)
    kinds = sorted({*listing.others, *(p.suffix or "(none)" for p in loose)})
    given = f"{folder}: {classes} sub-folders, {len(loose)} files, endings {', '.join(kinds) or 'none'}"
    hint = f"images:{folder} reads {pictures} images without classes" if pictures else None
    wanted = f"{request.spec}: {_ENDINGS} in one sub-folder per class"
    return InvalidArgument("the folder holds no image in a class folder", argument=wanted, given=given, hint=hint)


@SOURCES.register("images", takes="PATH")
def images(request: Request) -> Material:
    """Images in a folder, at any depth, without classes: the unlabelled side of an adaptation."""
    folder = existing(request.argument, request.spec, folder=True)
    listing = Listing()
    if not listing.add_folder(folder, -1, TRAIN):
        given = f"{folder}: {listing.others.total()} files, endings {', '.join(sorted(listing.others)) or 'none'}"
        raise InvalidArgument("the folder holds no image", argument=f"{request.spec}: {_ENDINGS}", given=given)
    return listing.material(request, (), f"unlabelled images in {folder}")


def image_files(names: Sequence[str | Path]) -> list[Path]:
    """Return image files as they are named; of a folder all images in it, at any depth.

    Raises:
        InvalidArgument: a name that is no regular file and no folder, a folder without images.

    Examples:
        >>> image_files(["photo.png"])
        [PosixPath('photo.png')]
    """
    found: list[Path] = []
    for name in names:
        path, listing = Path(name).expanduser(), Listing()
        if path.is_dir() and listing.add_folder(path, -1, TRAIN):
            found += [Path(os.fsdecode(inside)) for inside in listing.paths]
        elif path.is_file():
            found.append(path)
        else:
            given = f"{printable(str(name))}: {'no image in it' if path.is_dir() else 'no such image'}"
            raise InvalidArgument(f"an image is a file, or a folder of {_ENDINGS}", argument="IMAGE", given=given)
    return found


@SOURCES.register("list", takes="FILE")
def listed(request: Request) -> Material:
    """Images named in a text file, a path and a label on each line."""
    file = existing(request.argument, request.spec, folder=False)
    base = request.root or file.parent
    paths, words = [], []
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise InvalidArgument("a list is a text file", argument=request.spec, given=f"{file}: {error}") from error
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        parts = line.rsplit(maxsplit=1)
        if len(parts) != 2:
            given = f"{file}, line {number}: {line!r}"
            raise InvalidArgument("each line is a path, a space and a label", argument=request.spec, given=given)
        paths.append(_found(base / parts[0].strip()))
        words.append(unicodedata.normalize("NFC", parts[1]))
    if not words:
        raise InvalidArgument("the list is empty", argument=request.spec, given=str(file))
    classes, labels = numbered(words, request)
    if len(set(words)) < 2:
        raise InvalidArgument("a data set with classes has two or more", argument=request.spec, given=set(words))
    return Material(request.spec, classes, Files(paths), labels, f"images listed in {file}")


def _found(path: Path) -> Path:
    """Return the path in the form of Unicode that exists, if one does."""
    spellings: Sequence[Path] = [Path(unicodedata.normalize(form, str(path))) for form in ("NFC", "NFD")]
    return next((spelling for spelling in (path, *spellings) if spelling.exists()), path)
