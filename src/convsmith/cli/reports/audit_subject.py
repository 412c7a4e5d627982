"""What an audit looks at: a loaded network and images; and what every chapter of it returns."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from convsmith import data
from convsmith.cli.shell.progress import Callback
from convsmith.data import ImageSplit
from convsmith.data.folders import divided
from convsmith.data.loading import parsed
from convsmith.data.partition import TEST, VALIDATION
from convsmith.data.pictures import Arrays, shortened
from convsmith.data.source import existing
from convsmith.errors import ConvsmithError
from convsmith.inspection import feature_maps
from convsmith.inspection.outputs import class_scores
from convsmith.models.storage import LoadedModel
from convsmith.report import Figure, Section
from convsmith.report.figures import bars
from convsmith.training.evaluation import wilson as wilson_interval

#: mean share of the largest possible entropy above which a network seems to know nothing
UNTRAINED = 0.97


class OutOfTime(ConvsmithError):
    """A chapter's share of the budget is used up."""


def in_turn(keys: Sequence[int], most: int, seed: int) -> list[int]:
    """Return at most so many places, in turn from every class or group, drawn by the seed, in their order."""
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
    DATA words for the commands a chapter recommends. ``groups``: images of one group show the same thing (crops of one
    photograph) and never stand on both sides of a comparison.
    """

    loaded: LoadedModel
    pictures: ImageSplit
    labelled: ImageSplit | None
    target: ImageSplit | None
    words: dict[str, str]
    runtime: str
    seed: int
    device: str
    groups: Sequence[int] = ()
    notes: Sequence[str] = ()
    report: Callback | None = None
    deadline: float = float("inf")
    cache: dict[Any, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.groups = self.groups or range(len(self.pictures))

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

    def tensor(self, split: ImageSplit) -> Tensor:
        """Return the images as the network takes them, [N, C, H, W] on its device."""
        if split not in self.cache:
            seen = replace(split, description=split.description.seen_through(self.loaded.preprocessing))
            self.cache[split] = seen.fetch(slice(None)).images
        return self.cache[split].to(self.device)

    def pixels(self, images: Tensor) -> Tensor:
        """Return network inputs as pixels in [0, 1], [N, C, H, W] on the CPU."""
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
        return self._in_batches(images, note, lambda batch: class_scores(model(batch)))

    def maps(self, split: ImageSplit) -> Tensor:
        """Return the last feature maps as columns, [N, C, M] on the CPU: M positions of C channels."""
        read, key = feature_maps.feature_fn(self.model), ("maps", split)

        def columns(batch: Tensor) -> Tensor:
            x = read(self.model, batch)
            channels = int(getattr(self.model, "num_features", x.shape[1]))
            return feature_maps.channels_first(x, channels, self.model).flatten(2)

        if key not in self.cache:
            self.cache[key] = self._in_batches(self.tensor(split), "features", columns)
        return self.cache[key]

    def _in_batches(self, images: Tensor, note: str, function: Callable[[Tensor], Tensor]) -> Tensor:
        found = []
        with torch.no_grad():
            for start in range(0, len(images), 16):
                self.progress(start, len(images), note)
                found.append(function(images[start : start + 16]).float().cpu())
        return torch.cat(found)


def read_images(spec: str, *, most: int, seed: int) -> tuple[ImageSplit, list[str]]:
    """Read DATA: a folder of images (class folders are labels), or the held-out images of a named data set; and notes.

    Of a folder the chosen files alone are read: it may hold millions. Without labels the split has no classes.
    """
    kind, place = parsed(spec)
    if kind not in ("imagefolder", "images"):
        loaded = data.load(spec, seed=seed)
        split = loaded.test if len(loaded.test) >= min(most, 64) else loaded.train
        split = split.drawn(4 * most, seed)
        split = split.subset(in_turn(split.labels.tolist(), most, seed))
        images = Arrays((split.pixels(slice(None)) * 255).round().byte())
        return replace(split, images=images, index=torch.arange(len(split))), []
    folder = existing(place, spec, folder=True)
    parts = divided(folder)
    folder = parts.get(VALIDATION, parts.get(TEST, folder))
    files = data.image_files([folder])
    inside = [file.relative_to(folder).parts for file in files]
    tops = sorted({names[0] for names in inside})
    known = kind == "imagefolder" and len(tops) > 1 and all(len(names) > 1 for names in inside)
    labels = [tops.index(names[0]) if known else -1 for names in inside]
    chosen = in_turn(labels, most, seed)
    split, broken = data.from_files([files[n] for n in chosen], data.Preprocessing(), broken="skip")
    split = split.with_labels(torch.tensor([labels[n] for n in chosen])[split.index], tuple(tops) if known else ())
    told = f"{len(broken)} files of {spec} cannot be read and are left out: {shortened([b.path for b in broken])}"
    return replace(split, description=replace(split.description, source=spec)), [told] if broken else []


def rightly(head: Any, features: Tensor, labels: Any, seed: int) -> Any:
    """Return whether each row [N] is classified rightly by a standardised ``head`` fitted to the other parts.

    Parts: five, or as many as the smallest class has rows.
    """
    parts = min(5, int(np.unique(labels, return_counts=True)[1].min()))
    folds = StratifiedKFold(parts, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = features.double().numpy()
        return cross_val_predict(make_pipeline(StandardScaler(), head), rows, labels, cv=folds) == labels


def wilson(successes: float, count: int) -> tuple[float, float, float]:
    """Return a share and its 95 % Wilson interval."""
    return (successes / count if count else 0.0, *wilson_interval(successes, count))


def interval_bars(shares: Mapping[str, tuple[float, float, float]], xlabel: str, caption: str) -> Figure:
    """Return bars of shares with their intervals, in percent."""
    percents = {name: (100 * share, 100 * low, 100 * high) for name, (share, low, high) in shares.items()}
    return Figure(bars(percents, xlabel=xlabel), caption, "Bars with intervals.")


def percent(share: tuple[float, float, float]) -> str:
    """Return ``12.5 % (3 to 31)``."""
    return f"{100 * share[0]:.3g} % ({100 * share[1]:.0f} to {100 * share[2]:.0f})"
