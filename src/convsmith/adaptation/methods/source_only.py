"""Source-only: the same recipe, data order and updates, without ever looking at the target. The yardstick."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from convsmith.adaptation.evaluation.features import features_and_logits
from convsmith.adaptation.methods.method import METHODS, Common, Domains, DomainTask
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@dataclass(frozen=True)
class SourceOnlySettings(Common):
    """Nothing of its own; batch-norm layers see the source alone."""


@METHODS.register("source-only", settings=SourceOnlySettings, partial=False)
class SourceOnly(DomainTask):
    """Train on the labelled source alone."""

    def __init__(self, model: nn.Module, domains: Domains, settings: SourceOnlySettings) -> None:
        super().__init__(model, domains, settings)

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the cross-entropy of the source."""
        _, logits = features_and_logits(self.model, batch.source.images)
        loss = F.cross_entropy(logits, batch.source.labels)
        return Losses(loss, {"classification": loss})
