"""ETN: an auxiliary classifier with a leaky softmax says how transferable each source image is.

Cao, You, Long, Wang, Yang, Learning to Transfer Examples for Partial Domain Adaptation, CVPR 2019, eq. 2-10.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.adaptation.losses.selective import entropy
from convsmith.adaptation.methods.adversarial import AdversarialTask, WarmedSettings
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, Domains, Terms
from convsmith.arguments import wide


@dataclass(frozen=True)
class ETNSettings(WarmedSettings):
    """Settings of ETN: those of `WarmedSettings`, with the public code's entropy coefficient."""

    entropy: float = 0.2


@METHODS.register("etn", settings=ETNSettings, partial=True)
class ETN(AdversarialTask):
    """Weigh source images, in both losses, by an auxiliary domain estimate that knows the classes.

    The auxiliary head gives a leaky softmax ``p_k = exp(z_k) / (K + sum exp z)``, whose sum is the estimate that an
    image is from the source; ``w = 1 - sum_k p_k``, divided by its batch mean. It sees detached features.

    Differs from the paper: weights wait for a warm-up; the auxiliary losses have coefficient 1.
    """

    def __init__(self, model: nn.Module, domains: Domains, settings: ETNSettings) -> None:
        super().__init__(model, domains, settings)
        self.start = round(settings.warmup * domains.steps)
        self.auxiliary = nn.Linear(self.features, self.classes)

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        s = self.settings
        source = leaky_softmax(wide(self.auxiliary(both.source_features.detach())))
        target = leaky_softmax(wide(self.auxiliary(both.target_features.detach())))
        auxiliary = self._auxiliary_loss(source, target, both.source_labels)
        weights = torch.ones_like(source[:, 0])
        if step >= self.start:
            weights = (1 - source.detach().sum(1)).clamp_min(0)
            weights = weights / weights.mean().clamp_min(1e-8)
        return {
            "classification": (1.0, (weights * both.cross_entropy("none")).mean()),
            "auxiliary": (1.0, auxiliary),
            "domain": (s.adversarial, self.domain_loss(both, step, weights)),
            "entropy": (s.entropy * self.reversal(step), entropy(both.target_logits)),
        }

    def _auxiliary_loss(self, source: Tensor, target: Tensor, labels: Tensor) -> Tensor:
        """Return one-against-rest cross-entropy of the classes plus that of the summed domain estimate."""

        def loss(p: Tensor, truth: Tensor) -> Tensor:
            return F.binary_cross_entropy(p.clamp(1e-6, 1 - 1e-6), truth.to(p), reduction="sum") / len(p)

        inside, outside = source.sum(1), target.sum(1)
        with torch.autocast(source.device.type, enabled=False):  # which refuses losses of probabilities on a GPU
            classes = loss(source, F.one_hot(labels, self.classes))
            return classes + loss(inside, torch.ones_like(inside)) + loss(outside, torch.zeros_like(outside))


def leaky_softmax(logits: Tensor) -> Tensor:
    """Return ``exp(z_k) / (K + sum_j exp z_j)`` [B, K]; its sum is below 1, far below for an image of no class."""
    extra = logits.new_full((len(logits), 1), float(logits.shape[1])).log()
    return torch.cat([logits, extra], dim=1).softmax(1)[:, :-1]
