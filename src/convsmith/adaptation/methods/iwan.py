"""IWAN: a first discriminator says how target-like each source image is, a second one aligns what remains.

Zhang, Ding, Li, Ogunbona, Importance Weighted Adversarial Nets for Partial Domain Adaptation, CVPR 2018, eq. 4-12.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convsmith.adaptation.losses.adversarial import domain_loss
from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.selective import entropy
from convsmith.adaptation.methods.adversarial import AdversarialTask, WarmedSettings
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, Domains, Terms
from convsmith.arguments import wide
from convsmith.inspection.modes import evaluating


@METHODS.register("iwan", settings=WarmedSettings, partial=True)
class IWAN(AdversarialTask):
    """Weigh source images by how target-like an auxiliary discriminator finds them, and align the weighted source.

    ``w_i = 1 - D(f_i)``, divided by its batch mean; D sees detached features and has the widths of the other one.

    Differs from the paper: both domains share one extractor (as in later public code) where the paper freezes the
    source's; the published reversal ends at 0.1.
    """

    def __init__(self, model: nn.Module, domains: Domains, settings: WarmedSettings) -> None:
        super().__init__(model, domains, settings)
        self.start = round(settings.warmup * domains.steps)
        self.weigher = ClassDiscriminators(self.features, 1, settings.hidden, settings.dropout)

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        s = self.settings
        weigher = domain_loss(both.source_features.detach(), both.target_features.detach(), self.weigher)
        weights = None if step < self.start else self.importance(both.source_features)
        return {
            "classification": (1.0, both.cross_entropy()),
            "weigher": (1.0, weigher),
            "domain": (s.adversarial, self.domain_loss(both, step, weights)),
            "entropy": (s.entropy * self.reversal(step), entropy(both.target_logits)),
        }

    def importance(self, source_features: Tensor) -> Tensor:
        """Return the weights [n_s], mean 1."""
        with evaluating(self.weigher), torch.no_grad():
            weights = 1 - torch.sigmoid(wide(self.weigher(source_features.detach())[:, 0]))
        return weights / weights.mean().clamp_min(1e-8)
