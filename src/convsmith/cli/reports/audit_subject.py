"""What an audit looks at: a loaded network and images; and what every chapter of it returns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.errors import ConvsmithError, InvalidArgument, RunFailed

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor

    from convsmith.models.storage import LoadedModel
    from convsmith.report import Section

#: mean share of the largest possible entropy above which a network seems to know nothing
UNTRAINED = 0.97

Progress = Callable[[int, int, str], None]


class OutOfTime(ConvsmithError):
    """A chapter's share of the budget is used up."""


@dataclass(frozen=True)
class PictureSet:
    """Images with names; ``labels`` number ``classes``, None where nobody gave any.

    ``groups``: images of one group show the same thing (crops of one photograph) and never stand on both sides of a
    comparison. ``broken``: files that could not be read.
    """

    pictures: tuple[Image, ...]
    names: tuple[str, ...]
    source: str
    labels: tuple[int, ...] | None = None
    classes: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()
    broken: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.pictures)

    def subset(self, rows: list[int]) -> PictureSet:
        """Return some of the images."""
        return PictureSet(
            tuple(self.pictures[i] for i in rows),
            tuple(self.names[i] for i in rows),
            self.source,
            None if self.labels is None else tuple(self.labels[i] for i in rows),
            self.classes,
            tuple(self.groups[i] for i in rows) if self.groups else (),
            self.broken,
        )

    def limited(self, most: int, seed: int) -> PictureSet:
        """Return at most so many images; see `in_turn`."""
        keys = self.labels if self.labels is not None else self.groups or (0,) * len(self)
        return self if len(self) <= most else self.subset(in_turn(keys, most, seed))


def in_turn(keys: Sequence[int], most: int, seed: int) -> list[int]:
    """Return at most so many places, in turn from every class or group, drawn by the seed, in their order."""
    import torch

    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(seed)).tolist()
    seen: dict[int, int] = {}
    ranks = []
    for i in order:
        seen[keys[i]] = seen.get(keys[i], 0) + 1
        ranks.append((seen[keys[i]], i))
    return sorted(i for _, i in sorted(ranks, key=lambda pair: pair[0])[:most])


@dataclass(frozen=True)
class Chapter:
    """One answer: a sentence in plain words, a number with its interval, what it cost, and the next command.

    ``absent`` is the reason where there is no answer.
    """

    sentence: str = ""
    number: str = ""
    command: str = ""
    absent: str = ""
    facts: dict[str, Any] = field(default_factory=dict)
    section: Section | None = None


@dataclass
class Subject:
    """The network under audit with everything the chapters share, computed once.

    ``labelled`` are the images for chapters that need labels, ``target`` a second domain. ``words`` are the MODEL and
    DATA words for the commands a chapter recommends.
    """

    loaded: LoadedModel
    pictures: PictureSet
    labelled: PictureSet | None
    target: PictureSet | None
    words: dict[str, str]
    runtime: str
    seed: int
    device: str
    report: Progress | None = None
    began: float = 0.0
    deadline: float = float("inf")
    cache: dict[Any, Any] = field(default_factory=dict)

    def progress(self, done: int, total: int, note: str = "") -> None:
        """Report work, and stop it when the chapter's time is over."""
        if time.monotonic() > self.deadline:
            raise OutOfTime("the budget was used up before this chapter had its answer", hint="a larger --minutes")
        if self.report is not None:
            self.report(done, total, note)

    def lasts(self, seconds: float) -> bool:
        """Tell whether the chapter's time lasts for so many seconds more."""
        return time.monotonic() + seconds < self.deadline

    @property
    def model(self) -> Any:
        """The network, in eval mode on its device."""
        return self.loaded.model

    def name(self, label: int) -> str:
        """Return the first of a class's names."""
        return self.loaded.name_of(label).split(",")[0]

    def tensor(self, pictures: PictureSet) -> Tensor:
        """Return the images as the network takes them, [N, C, H, W] on its device."""
        import torch

        key = ("tensor", id(pictures))
        if key not in self.cache:
            transform = self.loaded.transform
            self.cache[key] = (pictures, torch.stack([transform(p) for p in pictures.pictures]))
        return self.cache[key][1].to(self.device)

    def pixels(self, images: Tensor) -> Tensor:
        """Return network inputs as pixels in [0, 1], [N, C, H, W] on the CPU."""
        import torch

        about = self.loaded.preprocessing
        mean, std = (torch.tensor(v).view(1, -1, 1, 1) for v in (about.mean, about.std))
        return (images.cpu() * std + mean).clamp(0, 1)

    @cached_property
    def untrained(self) -> bool:
        """Whether the answers are as unsure as can be: mean entropy near the logarithm of the number of classes."""
        logits = self.logits.double()
        entropy = -(logits.softmax(1) * logits.log_softmax(1)).sum(1).mean()
        return float(entropy) > UNTRAINED * math.log(logits.shape[1])

    @cached_property
    def logits(self) -> Tensor:
        """The network's logits on the images, [N, K]."""
        return self.answers(self.model, self.tensor(self.pictures), "predict")

    def answers(self, model: Any, images: Tensor, note: str) -> Tensor:
        """Return a network's logits, [N, K] on the CPU."""
        import torch

        from convsmith.inspection.outputs import class_scores

        found = []
        with torch.no_grad():
            for start in range(0, len(images), 16):
                self.progress(start, len(images), note)
                found.append(class_scores(model(images[start : start + 16])).float().cpu())
        return torch.cat(found)

    def maps(self, pictures: PictureSet) -> Tensor:
        """Return the last feature maps as columns, [N, C, M] on the CPU: M positions of C channels."""
        import torch

        from convsmith.inspection import feature_maps

        key = ("maps", id(pictures))
        if key not in self.cache:
            read, images, found = feature_maps.feature_fn(self.model), self.tensor(pictures), []
            with torch.no_grad():
                for start in range(0, len(images), 16):
                    self.progress(start, len(images), "features")
                    x = read(self.model, images[start : start + 16])
                    channels = int(getattr(self.model, "num_features", x.shape[1]))
                    found.append(feature_maps.channels_first(x, channels, self.model).flatten(2).float().cpu())
            self.cache[key] = (pictures, torch.cat(found))
        return self.cache[key][1]


def read_pictures(spec: str, *, most: int, seed: int) -> PictureSet:
    """Read DATA: a folder of images (class folders are labels), or the held-out images of a named data set."""
    prefix, colon, rest = spec.partition(":")
    folder = Path(rest) if colon and prefix in ("imagefolder", "images") else Path(spec)
    if folder.is_dir():
        return _folder(folder, spec, most, seed, labelled=prefix != "images")
    if colon and prefix in ("imagefolder", "images"):
        raise InvalidArgument("there is no such folder", argument="--data", given=str(folder))
    return _named(spec, most, seed)


def _folder(folder: Path, spec: str, most: int, seed: int, *, labelled: bool) -> PictureSet:
    """Read the chosen files only: a folder may hold millions."""
    from convsmith.data import read_image
    from convsmith.data.pictures import EXTENSIONS

    for part in ("val", "validation", "test"):
        if (folder / part).is_dir() and (folder / "train").is_dir():
            folder = folder / part
            break
    files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in EXTENSIONS and p.is_file())
    found = [(p, p.relative_to(folder).parts) for p in files if not any(s.startswith(".") for s in p.parts[-2:])]
    if not found:
        raise InvalidArgument("the folder holds no image", argument="--data", given=str(folder))
    tops = sorted({parts[0] for _, parts in found if len(parts) > 1})
    known = labelled and len(tops) > 1 and all(len(parts) > 1 for _, parts in found)
    numbers = [tops.index(parts[0]) if known else 0 for _, parts in found]
    pictures, names, labels, broken = [], [], [], []
    for row in in_turn(numbers, most, seed):
        path = found[row][0]
        try:
            picture = read_image(path)
        except RunFailed:
            broken.append(path.name)
            continue
        picture.thumbnail((512, 512))
        pictures.append(picture)
        names.append(path.name)
        labels.append(numbers[row])
    if not pictures:
        raise InvalidArgument("no image of the folder can be read", argument="--data", given=str(folder))
    known_labels = tuple(labels) if known else None
    groups = tuple(range(len(pictures)))
    return PictureSet(tuple(pictures), tuple(names), spec, known_labels, tuple(tops), groups, tuple(broken))


def _named(spec: str, most: int, seed: int) -> PictureSet:
    import torch
    from PIL import Image

    from convsmith import data

    loaded = data.load(spec, seed=seed)
    split = loaded.splits["test"] if len(loaded.splits["test"]) >= min(most, 64) else loaded.train
    rows = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[: 4 * most].sort().values
    pictures = []
    for one in split.pixels(rows):
        array = (one * 255).round().byte().permute(1, 2, 0).numpy()
        pictures.append(Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array))
    labels = tuple(int(label) for label in split.labels[rows])
    names, classes = tuple(f"image {int(i)}" for i in rows), tuple(loaded.classes)
    known = labels if classes and min(labels) >= 0 else None
    return PictureSet(tuple(pictures), names, spec, known, classes, tuple(range(len(rows)))).limited(most, seed)


def wilson(successes: float, count: int) -> tuple[float, float, float]:
    """Return a share and its 95 % Wilson interval."""
    from convsmith.training.evaluation import wilson as interval

    return (successes / count if count else 0.0, *interval(successes, count))


def percent(share: tuple[float, float, float]) -> str:
    """Return ``12.5 % (3 to 31)``."""
    return f"{100 * share[0]:.3g} % ({100 * share[1]:.0f} to {100 * share[2]:.0f})"
