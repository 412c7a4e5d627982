"""CDAN: the discriminator sees features together with predictions.

Long, Cao, Wang, Jordan, Conditional Adversarial Domain Adaptation, NeurIPS 2018, eq. 5-8.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsmith.adaptation.losses.adversarial import certainty, domain_loss
from convsmith.adaptation.methods.adversarial import AdversarialSettings, AdversarialTask
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, Domains, Terms
from convsmith.arguments import wide
from convsmith.inspection.features import classifier_of


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
class CDAN(AdversarialTask):
    """Condition one domain discriminator on the predictions (outer product or its random projection).

    Differs from the paper: no gradient flows through the predictions or the entropy weights; the weights have mean 1 in
    each domain (the public code divides the sum of both by their total weight, half of this).
    """

    feature_matrix: Tensor
    class_matrix: Tensor

    def __init__(self, model: nn.Module, domains: Domains, settings: CDANSettings) -> None:
        product = classifier_of(model).in_features * domains.classes
        width = min(product, settings.largest_product)
        super().__init__(model, domains, settings, width)
        self.random = product > settings.largest_product
        self.register_buffer("feature_matrix", torch.randn(self.features if self.random else 0, width))
        self.register_buffer("class_matrix", torch.randn(self.classes if self.random else 0, width))

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        p_source, p_target = (wide(z.detach()).softmax(1) for z in (both.source_logits, both.target_logits))
        domain = domain_loss(
            self.conditioned(both.source_features, p_source),
            self.conditioned(both.target_features, p_target),
            self.discriminator,
            reversal=self.reversal(step),
            source_weights=self._weights(both.source_logits),
            target_weights=self._weights(both.target_logits),
        )
        return {"classification": (1.0, both.cross_entropy()), "domain": (self.settings.adversarial, domain)}

    def _weights(self, logits: Tensor) -> Tensor | None:
        if not self.settings.entropy_weights:
            return None
        weights = certainty(logits)
        return weights / weights.mean()

    def conditioned(self, features: Tensor, probabilities: Tensor) -> Tensor:
        """Return ``f x p`` flattened [B, d K], or ``(R_f f) * (R_p p) / sqrt(width)`` [B, width]."""
        if not self.random:
            return (probabilities[:, :, None] * features[:, None, :]).flatten(1)
        width = self.feature_matrix.shape[1]
        return (features @ self.feature_matrix) * (probabilities @ self.class_matrix) / width**0.5
