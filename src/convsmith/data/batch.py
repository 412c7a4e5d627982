"""What travels from a data set to a task: one batch of one domain, or of a labelled source and an unlabelled target."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Images of one data set.

    Shapes: ``images`` [B, C, H, W] float32, normalised with the description's mean and std; ``labels`` [B] int64
    (-1 where unknown); ``index`` [B] int64, the image's number in the whole data set, unique over all splits.
    """

    images: Tensor
    labels: Tensor
    index: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on ``device``."""
        return Batch(
            self.images.to(device, non_blocking=True),
            self.labels.to(device, non_blocking=True),
            self.index.to(device, non_blocking=True),
        )


@dataclass(frozen=True)
class DomainBatch:
    """A labelled source batch beside a target batch whose labels no method may read (they are -1 in training)."""

    source: Batch
    target: Batch

    def __len__(self) -> int:
        return len(self.source)

    def to(self, device: torch.device | str) -> DomainBatch:
        """Return both sides on ``device``."""
        return DomainBatch(self.source.to(device), self.target.to(device))
