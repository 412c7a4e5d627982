"""Data sets that are folders or lists of image files."""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from convsmith.arguments import checked
from convsmith.data.partition import TRAIN, official_parts
from convsmith.data.pictures import EXTENSIONS, Files, printable, shortened
from convsmith.data.source import SOURCES, Material, Request, existing, numbered
from convsmith.errors import InvalidArgument, refusing

_ENDINGS = f"files ending in {' '.join(sorted(EXTENSIONS))}"


class Walk:
    """Files of images under folders; ``others`` counts what is passed over, by ending.

    Every folder is visited once, whatever links lead to it; what is no regular file (a pipe, a device) is no image.
    """

    def __init__(self, *visited: Path) -> None:
        self.visited = {_identity(folder) for folder in visited}
        self.others: Counter[str] = Counter()

    def files(self, folder: str | Path) -> Iterator[bytes]:
        """Yield the path of every image under ``folder``, at any depth, in order."""
        self.visited.add(_identity(folder))
        inner = []
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                suffix = Path(entry.name).suffix
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    inner.append(entry.path)
                elif entry.is_file() and suffix.lower() in EXTENSIONS:
                    yield os.fsencode(entry.path)
                else:
                    self.others[suffix or "(none)"] += 1
        for path in inner:
            if _identity(path) not in self.visited:
                yield from self.files(path)

    def notes(self) -> tuple[str, ...]:
        """Say which files are not read."""
        told = ", ".join(f"{count} {kind}" for kind, count in sorted(self.others.items()))
        note = f"{self.others.total()} files are not read, being no image or without an image extension: {told}"
        return (note,) if told else ()


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
    classes = tuple(subfolders(parts[TRAIN]))
    walk = Walk(*(inside for place in (folder, *parts.values()) for inside in (place, *subfolders(place).values())))
    paths: list[bytes] = []
    held: list[tuple[int, int, int]] = []
    for part, place in parts.items():
        unknown = [name for name in subfolders(place) if name not in classes]
        if unknown:
            rule, given = "every class needs training images", f"{place} has also {shortened(unknown)}"
            raise InvalidArgument(rule, argument=f"the classes of {parts[TRAIN]}", given=given)
        for name, path in subfolders(place).items():
            before = len(paths)
            paths.extend(walk.files(path))
            held.append((classes.index(name), part, len(paths) - before))
    empty = [classes[number] for number, part, count in held if part == TRAIN and not count]
    if not paths:
        raise _no_pictures(request, folder, walk, len(classes))
    if empty and len(empty) < len(classes):
        raise InvalidArgument("a class folder holds no image", argument=request.spec, given=shortened(empty))
    if len(classes) < 2:
        given = f"{folder}: the one class folder {classes[0]!r}"
        hint = f"add class folders, or images:{folder} for images without classes"
        raise InvalidArgument("a data set with classes has two or more", argument=request.spec, given=given, hint=hint)
    numbers, codes, counts = torch.tensor(held).T
    labels, official = numbers.repeat_interleave(counts), codes.repeat_interleave(counts)
    return Material(request.spec, classes, Files(paths), labels, f"images in {folder}", official, walk.notes())


def _no_pictures(request: Request, folder: Path, walk: Walk, classes: int) -> InvalidArgument:
    loose = [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]
    pictures = sum(p.suffix.lower() in EXTENSIONS for p in loose)
    kinds = sorted({*walk.others, *(p.suffix or "(none)" for p in loose)})
    given = f"{folder}: {classes} sub-folders, {len(loose)} files, endings {', '.join(kinds) or 'none'}"
    hint = f"images:{folder} reads {pictures} images without classes" if pictures else None
    wanted = f"{request.spec}: {_ENDINGS} in one sub-folder per class"
    return InvalidArgument("the folder holds no image in a class folder", argument=wanted, given=given, hint=hint)


@SOURCES.register("images", takes="PATH")
def images(request: Request) -> Material:
    """Images in a folder, at any depth, without classes: the unlabelled side of an adaptation."""
    folder = existing(request.argument, request.spec, folder=True)
    walk = Walk()
    pictures = Files(walk.files(folder))
    if not len(pictures):
        given = f"{folder}: {walk.others.total()} files, endings {', '.join(sorted(walk.others)) or 'none'}"
        raise InvalidArgument("the folder holds no image", argument=f"{request.spec}: {_ENDINGS}", given=given)
    labels, about = torch.full((len(pictures),), -1), f"unlabelled images in {folder}"
    return Material(request.spec, (), pictures, labels, about, notes=walk.notes())


@checked
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
        argument, rule = printable(str(name)), f"an image is a file, or a folder of {_ENDINGS}"
        with refusing("neither an image nor a folder can be read here", OSError, RuntimeError, argument=argument):
            path = Path(name).expanduser()
            inside = [Path(os.fsdecode(file)) for file in Walk().files(path)] if path.is_dir() else [path]
            found += inside
            if not inside or not (path.is_dir() or path.is_file()):
                given = "no image in it" if path.is_dir() else "no such image"
                raise InvalidArgument(rule, argument=argument, given=given)
    return found


@SOURCES.register("list", takes="FILE")
def listed(request: Request) -> Material:
    """Images named in a text file, a path and a label on each line."""
    file = existing(request.argument, request.spec, folder=False)
    base = request.root or file.parent
    paths, words = [], []
    with refusing("a list is a text file", UnicodeDecodeError, argument=request.spec):
        lines = file.read_text(encoding="utf-8-sig").splitlines()
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
