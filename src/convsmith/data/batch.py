"""What travels from a data set to a task: one batch of one domain, or of a labelled source and an unlabelled target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from convsmith.arguments import spelled
from convsmith.errors import InvalidArgument


@dataclass(frozen=True)
class Batch:
    """Images of one data set.

    Shapes: ``images`` [B, C, H, W] float32, normalised with the description's mean and std; ``labels`` [B] int64
    (-1 where unknown); ``index`` [B] int64, the image's number in the whole data set, unique over all splits;
    ``targets`` [B, K] class probabilities where images were mixed, else None.
    """

    images: Tensor
    labels: Tensor
    index: Tensor
    targets: Tensor | None = None

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Batch:
        """Return the batch on ``device``, images of floats as ``dtype`` where one is given."""
        moved = self._each(lambda tensor: tensor.to(device, non_blocking=True))
        floats = dtype is not None and moved.images.is_floating_point()
        return replace(moved, images=moved.images.to(dtype)) if floats else moved

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory (what a loader calls where there is a GPU)."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Batch:
        targets = None if self.targets is None else change(self.targets)
        return Batch(change(self.images), change(self.labels), change(self.index), targets)


def check_batch(value: Any) -> None:
    """Refuse what is no `Batch`: pairs of images and labels from a loader of torch's, for instance."""
    if not isinstance(value, Batch):
        rule, hint = "a batch is a convsmith.data.Batch", "Batch(images, labels, index), or a convsmith.data.Loader"
        raise InvalidArgument(rule, argument="batches", given=spelled(value), hint=hint)


@dataclass(frozen=True)
class DomainBatch:
    """A labelled source batch beside a target batch whose labels no method may read (they are -1 in training)."""

    source: Batch
    target: Batch

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> DomainBatch:
        """Return both sides on ``device``; see `Batch.to`."""
        return DomainBatch(self.source.to(device, dtype), self.target.to(device, dtype))
