"""CDAN: the discriminator sees features together with predictions.

Long, Cao, Wang, Jordan, Conditional Adversarial Domain Adaptation, NeurIPS 2018, eq. 5-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.methods.adversarial import AdversarialSettings, domain_loss
from convsmith.adaptation.methods.method import METHODS, Domains, DomainTask
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@dataclass(frozen=True)
class CDANSettings(AdversarialSettings):
    """Settings of CDAN, besides those of `AdversarialSettings`.

    Args:
        entropy_weights: weigh images by ``1 + exp(-H)`` (CDAN+E).
        largest_product: above this many entries the outer product is replaced by a random projection of this width.
    """

    entropy_weights: bool = True
    largest_product: int = 4096


@METHODS.register("cdan", settings=CDANSettings, partial=False)
class CDAN(DomainTask):
    """Condition one domain discriminator on the predictions (outer product or its random projection)."""

    feature_matrix: Tensor
    class_matrix: Tensor

    def __init__(self, model: nn.Module, domains: Domains, settings: CDANSettings) -> None:
        super().__init__(model, domains, settings)
        self.settings = settings
        self.random = self.features * self.classes > settings.largest_product
        width = settings.largest_product if self.random else self.features * self.classes
        self.discriminator = ClassDiscriminators(width, 1, settings.hidden, settings.dropout)
        self.register_buffer("feature_matrix", torch.randn(self.features if self.random else 0, width))
        self.register_buffer("class_matrix", torch.randn(self.classes if self.random else 0, width))

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return source cross-entropy plus the reversed, conditioned domain loss."""
        s, seen = self.settings, self.look(batch)
        classification = F.cross_entropy(seen.source_logits, seen.source_labels)
        p_source, p_target = (z.detach().float().softmax(1) for z in (seen.source_logits, seen.target_logits))
        domain = domain_loss(
            self.conditioned(seen.source_features, p_source),
            self.conditioned(seen.target_features, p_target),
            self.discriminator,
            reversal=self.strength(step, s.ramp_upper, s.ramp_share),
            source_weights=certainty(p_source) if s.entropy_weights else None,
            target_weights=certainty(p_target) if s.entropy_weights else None,
        )
        return Losses(classification + s.adversarial * domain, {"classification": classification, "domain": domain})

    def conditioned(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Return ``f x p`` flattened [B, d K], or ``(R_f f) * (R_p p) / sqrt(width)`` [B, width]."""
        if not self.random:
            return (probabilities[:, :, None] * features[:, None, :]).flatten(1)
        width = self.feature_matrix.shape[1]
        return (features @ self.feature_matrix) * (probabilities @ self.class_matrix) / width**0.5


def certainty(probabilities: Tensor) -> Tensor:
    """Return ``1 + exp(-H(p))`` [B] of probabilities [B, K], scaled to mean 1."""
    raw = 1 + torch.exp(-torch.special.entr(probabilities.detach()).sum(1))
    return raw / raw.mean()
