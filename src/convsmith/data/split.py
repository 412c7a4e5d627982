"""A part of a data set that batches are drawn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from convsmith.data.augment import AUGMENTATIONS, kept_random_states, keyed
from convsmith.data.batch import Batch
from convsmith.data.description import DataDescription
from convsmith.data.keyed import hash64
from convsmith.data.preprocessing import Pipeline
from convsmith.data.store import Store
from convsmith.errors import InvalidArgument

Positions = Tensor | Sequence[int] | range | slice


@dataclass(frozen=True, eq=False)
class ImageSplit:
    """Images ``rows`` of a store with their labels.

    Shapes: ``rows``, ``labels``, ``index`` [N] int64. ``index`` is the image's number in the whole data set, ``labels``
    are -1 where unknown. Positions given to the methods count within this split. ``settings`` are the augmentation's.
    """

    store: Store
    rows: Tensor
    labels: Tensor
    index: Tensor
    description: DataDescription
    augment: str = "none"
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        return f"ImageSplit({self.description.name!r}, {len(self)} images, augment={self.augment!r})"

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of all classes of the data set, also of those that this split has no image of."""
        return self.description.classes

    @cached_property
    def _augmentation(self) -> Pipeline:
        return AUGMENTATIONS[self.augment](self.description.preprocessing, **self.settings)

    def pixels(self, positions: Positions) -> Tensor:
        """Return [B, C, H, W] float32 in [0, 1], at their final size, as the evaluation path shows them."""
        return self.store.pixels(self.rows[self._checked(positions)])

    def fetch(self, positions: Positions, *, key: tuple[int, int] | None = None) -> Batch:
        """Return normalised images with labels and numbers; ``key=(seed, epoch)`` switches the augmentation on."""
        chosen = self._checked(positions)
        rows, index = self.rows[chosen], self.index[chosen]
        if key is None or self.augment == "none" or not len(rows):
            return Batch(self.normalise(self.store.pixels(rows)), self.labels[chosen], index)
        words = hash64(*key, index.numpy()).tolist()
        with kept_random_states():
            images = [
                keyed(self._augmentation, self._picture(row), word)
                for row, word in zip(rows.tolist(), words, strict=True)
            ]
        return Batch(torch.stack(images), self.labels[chosen], index)

    def name(self, position: int) -> str:
        """Return what messages and tables call an image: its path, where it has one."""
        return self.store.pictures.name(int(self.rows[position]))

    def _picture(self, row: int) -> Any:
        return self.store.pictures.picture(row, self.description.channels)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Return ``(pixels - mean) / std`` by channel, for pixels [B, C, H, W]."""
        mean, std = (pixels.new_tensor(v)[:, None, None] for v in (self.description.mean, self.description.std))
        return (pixels - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """Undo `normalise`."""
        mean, std = (images.new_tensor(v)[:, None, None] for v in (self.description.mean, self.description.std))
        return images * std + mean

    def subset(self, positions: Positions) -> ImageSplit:
        """Return the split that holds only ``positions`` (numbers, a slice, or one bool per image), in that order."""
        chosen = self._checked(positions)
        return replace(self, rows=self.rows[chosen], labels=self.labels[chosen], index=self.index[chosen])

    def of_classes(self, classes: Sequence[int]) -> ImageSplit:
        """Return the images whose label is among ``classes``; the numbering of the classes stays."""
        wanted = torch.as_tensor(list(classes), dtype=torch.int64)
        if wanted.numel() and not (int(wanted.min()) >= 0 and int(wanted.max()) < len(self.classes)):
            raise InvalidArgument(
                "no such class",
                argument=f"classes {list(classes)}",
                given=f"{len(self.classes)} classes, counted from 0",
            )
        return self.subset(torch.isin(self.labels, wanted).nonzero()[:, 0])

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
        return replace(self, description=self.description.with_normalisation(mean, std))

    def _checked(self, positions: Positions) -> Tensor:
        if isinstance(positions, slice):
            return torch.arange(len(self))[positions]
        chosen = torch.as_tensor(positions if isinstance(positions, Tensor) else list(positions))
        if chosen.dtype == torch.bool:
            if chosen.shape != (len(self),):
                raise InvalidArgument("a mask has one entry per image", argument=len(self), given=tuple(chosen.shape))
            return chosen.nonzero()[:, 0]
        if chosen.numel() == 0:
            return torch.zeros(0, dtype=torch.int64)
        if chosen.ndim != 1 or chosen.is_floating_point():
            raise InvalidArgument(
                "positions are a list of whole numbers", given=f"{chosen.dtype} {tuple(chosen.shape)}"
            )
        if int(chosen.min()) < 0 or int(chosen.max()) >= len(self):
            raise InvalidArgument(
                f"positions run from 0 to {len(self) - 1}",
                argument="an image of this split",
                given=chosen.tolist()[:10],
            )
        return chosen.long().cpu()
