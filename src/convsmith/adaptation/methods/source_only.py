"""Source-only: the same recipe, data order and updates, without ever looking at the target. The yardstick."""

from __future__ import annotations

from torch.nn import functional as F

from convsmith.adaptation.methods.method import METHODS, DomainTask, MethodConfig
from convsmith.data.batch import DomainBatch
from convsmith.inspection.features import features_and_logits
from convsmith.training.task import Losses


@METHODS.register("source-only", settings=MethodConfig, partial=False)
class SourceOnly(DomainTask):
    """Train on the labelled source alone; batch-norm layers see nothing else."""

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        _, logits = features_and_logits(self.model, batch.source.images)
        loss = F.cross_entropy(logits, batch.source.labels)
        return Losses(loss, {"classification": loss})
