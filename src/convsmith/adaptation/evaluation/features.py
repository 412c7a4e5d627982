"""Features and logits of both domains, normalised together or apart."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.data.batch import DomainBatch
from convsmith.inspection.features import features_and_logits
from convsmith.inspection.modes import BATCH_NORMS

Normalisation = Literal["joint", "separate"]


@dataclass(frozen=True)
class DomainFeatures:
    """Both domains through the network. Shapes: features [n, d], logits [n, K], labels and index [n]."""

    source_features: Tensor
    source_logits: Tensor
    source_labels: Tensor
    source_index: Tensor
    target_features: Tensor
    target_logits: Tensor
    target_index: Tensor

    def cross_entropy(self, reduction: str = "mean", label_smoothing: float = 0.0) -> Tensor:
        """Return that of the source, a scalar; [n] with ``reduction="none"``."""
        logits, labels = self.source_logits, self.source_labels
        return F.cross_entropy(logits, labels, reduction=reduction, label_smoothing=label_smoothing)

    def weighted_cross_entropy(self, weights: Tensor) -> Tensor:
        """Return ``sum_i w_i CE_i / sum_i w_i`` of the source, 0 if no image has a weight."""
        return (weights * self.cross_entropy("none")).sum() / weights.sum().clamp_min(1e-8)


def extract_domain_features(
    model: nn.Module, batch: DomainBatch, normalisation: Normalisation = "joint"
) -> DomainFeatures:
    """Return features and logits of both domains.

    ``"joint"`` runs source and target as one batch, so batch-norm layers see their mixture (SAN, PADA); ``"separate"``
    runs them apart, each normalised by its own batch, and the running statistics are the target's.
    """
    n = len(batch.source)
    if normalisation == "joint":
        features, logits = features_and_logits(model, torch.cat([batch.source.images, batch.target.images]))
        parts = (features[:n], logits[:n], features[n:], logits[n:])
    else:
        with _running_statistics_kept(model):
            source = features_and_logits(model, batch.source.images)
        parts = (*source, *features_and_logits(model, batch.target.images))
    return DomainFeatures(*parts[:2], batch.source.labels, batch.source.index, *parts[2:], batch.target.index)


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    layers = [(m, m.track_running_stats) for m in model.modules() if isinstance(m, BATCH_NORMS)]
    for layer, _ in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer, tracked in layers:
            layer.track_running_stats = tracked
