"""A data set of images, its splits that batches are drawn from, and where their pixels come from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from convsmith.data.augment import AUGMENTATIONS, kept_random_states, keyed
from convsmith.data.batch import Batch
from convsmith.data.keyed import hash64
from convsmith.data.pictures import Pictures
from convsmith.data.preprocessing import DataDescription, Pipeline
from convsmith.data.source import BrokenFile
from convsmith.errors import InvalidArgument, refusing

Positions = Tensor | Sequence[int] | range | slice
Size = tuple[int, int]


@runtime_checkable
class Split(Protocol):
    """What a `Loader` asks of its images: an `ImageSplit`, or feature maps that are kept."""

    @property
    def labels(self) -> Tensor:
        """Labels [N] int64, -1 where unknown."""

    @property
    def index(self) -> Tensor:
        """Numbers [N] int64 in the whole data set."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes."""

    def __len__(self) -> int: ...

    def fetch(self, positions: Positions, *, key: tuple[int, int] | None = None) -> Batch:
        """Return a batch, changed as ``key`` (seed, epoch) says."""

    def without_labels(self) -> Split:
        """Return the same images with every label -1."""


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images ``index`` of a data set with their labels.

    Shapes: ``labels``, ``index`` [N] int64. ``index`` is the image's number in the whole data set, ``labels`` are -1
    where unknown. Positions given to the methods count within this split. ``settings`` are the augmentation's.
    """

    images: Pictures
    labels: Tensor
    index: Tensor
    description: DataDescription
    augment: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.index)

    def __repr__(self) -> str:
        return f"ImageSplit({self.description.name!r}, {len(self)} images, augment={self.augment!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes of the data set, also of those that this split has no image of."""
        return self.description.classes

    @cached_property
    def _augmentation(self) -> Pipeline:
        return AUGMENTATIONS[self.augment](self.description.preprocessing, **self.settings)

    @cached_property
    def _shown(self) -> Pipeline:
        """The evaluation path up to pixels: a mean of 0 and a std of 1 change no bit."""
        about = self.description.preprocessing
        return replace(about, mean=(0.0,) * about.channels, std=(1.0,) * about.channels).transform()

    def pixels(self, positions: Positions) -> Tensor:
        """Return [B, C, H, W] float32 in [0, 1], at their final size, as the evaluation path shows them."""
        index = self.index[self._checked(positions)]
        about = self.description
        return self.images.pixels(index, self._shown) if len(index) else torch.zeros(0, about.channels, *about.size)

    def fetch(self, positions: Positions, *, key: tuple[int, int] | None = None) -> Batch:
        """Return normalised images with labels and numbers; ``key=(seed, epoch)`` switches the augmentation on."""
        chosen = self._checked(positions)
        index = self.index[chosen]
        if key is None or self.augment == "none" or not len(index):
            return Batch(self.normalise(self.pixels(chosen)), self.labels[chosen], index)
        words = hash64(*key, index.numpy()).tolist()
        with kept_random_states():
            images = [
                keyed(self._augmentation, self.images.picture(number, self.description.channels), word)
                for number, word in zip(index.tolist(), words, strict=True)
            ]
        return Batch(torch.stack(images), self.labels[chosen], index)

    def name(self, position: int) -> str:
        """Return what messages and tables call an image: its path, where it has one."""
        return self.images.name(int(self.index[position]))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return ``(pixels - mean) / std`` by channel, for pixels [B, C, H, W]."""
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.description.mean, self.description.std))
        return (pixels - mean) / std

    def subset(self, positions: Positions) -> ImageSplit:
        """Return the split that holds only ``positions`` (numbers, a slice, or one bool per image), in that order."""
        chosen = self._checked(positions)
        return replace(self, labels=self.labels[chosen], index=self.index[chosen])

    def joined(self, *others: ImageSplit) -> ImageSplit:
        """Return these images and those of other splits of the same data set."""
        every = (self, *others)
        return replace(self, labels=torch.cat([p.labels for p in every]), index=torch.cat([p.index for p in every]))

    def drawn(self, most: int, seed: int) -> ImageSplit:
        """Return at most so many images, drawn by ``seed``, in their order."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.subset(order[:most].sort().values)

    def of_classes(self, classes: Sequence[int]) -> ImageSplit:
        """Return the images whose label is among ``classes``; the numbering of the classes stays."""
        if not all(0 <= number < len(self.classes) for number in classes):
            given = f"{len(self.classes)} classes, counted from 0"
            raise InvalidArgument("no such class", argument=f"classes {list(classes)}", given=given)
        return self.subset(torch.isin(self.labels, torch.tensor(list(classes), dtype=torch.int64)))

    def with_augment(self, name: str, **settings: Any) -> ImageSplit:
        """Return the same images with another augmentation; ``settings`` are those of its function."""
        changed = replace(self, augment=name, settings=settings)
        if name != "none" or settings:
            _ = changed._augmentation  # refuses bad names and settings now, not in a worker
        return changed

    def with_labels(self, labels: Tensor, classes: tuple[str, ...]) -> ImageSplit:
        """Return the same images under other labels [N] and class names."""
        if labels.shape != self.labels.shape:
            raise InvalidArgument("one label per image", argument="labels", given=tuple(labels.shape))
        return replace(self, labels=labels, description=replace(self.description, classes=classes))

    def without_labels(self) -> ImageSplit:
        """Return the same images with every label -1: what a method may see of an unlabelled domain."""
        return replace(self, labels=torch.full_like(self.labels, -1))

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> ImageSplit:
        """Return the same images normalised by other statistics, one number per channel (of ImageNet, for one)."""
        about = self.description
        if {len(mean), len(std)} != {about.channels}:
            rule, given = f"one mean and one positive std per channel: {about.channels}", (tuple(mean), tuple(std))
            raise InvalidArgument(rule, argument="normalisation", given=given)
        seen = replace(about.preprocessing, mean=tuple(mean), std=tuple(std))
        return replace(self, description=about.seen_through(seen))

    def _checked(self, positions: Positions) -> Tensor:
        every = torch.arange(len(self))
        rule = f"positions are whole numbers from 0 to {len(self) - 1}, or one bool per image"
        with refusing(rule, IndexError, TypeError, ValueError, argument="an image of this split"):
            if not isinstance(positions, slice):
                positions = torch.as_tensor(positions if isinstance(positions, Tensor) else list(positions)).cpu()
                positions = positions.long() if positions.numel() == 0 else positions
                if positions.ndim != 1 or bool((positions < 0).any()):
                    raise IndexError(f"{positions.tolist()}")
            return every[positions]


@dataclass(frozen=True, eq=False)
class ImageData:
    """What `load` returns.

    ``train`` alone carries the augmentation. ``skipped`` lists the broken files that ``broken="skip"`` passed over,
    ``notes`` everything else that is not used, in words.
    """

    description: DataDescription
    train: ImageSplit
    validation: ImageSplit
    test: ImageSplit
    skipped: tuple[BrokenFile, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in label order."""
        return self.description.classes

    @property
    def splits(self) -> dict[str, ImageSplit]:
        """The three splits by name."""
        return {"train": self.train, "validation": self.validation, "test": self.test}

    def map(self, **changed: ImageSplit) -> ImageData:
        """Return the data with some splits replaced; the description follows the train split and the new counts."""
        splits = {**self.splits, **changed}
        counts = {name: len(split) for name, split in splits.items()}
        about = replace(splits["train"].description, counts=counts)
        train, validation, test = (replace(split, description=about) for split in splits.values())
        return replace(self, description=about, train=train, validation=validation, test=test)

    def renumbered(self, numbers: Sequence[int], classes: tuple[str, ...]) -> ImageData:
        """Return the data under other class names: ``numbers`` has the new one of every class, -1 for none."""
        number = torch.tensor([*numbers, -1])  # the last for images without label
        return self.map(**{n: split.with_labels(number[split.labels], classes) for n, split in self.splits.items()})

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> ImageData:
        """Return the data normalised by other statistics, one number per channel."""
        return self.map(**{name: split.with_normalisation(mean, std) for name, split in self.splits.items()})
