"""BA3US: lend the target some source images at first, and press down confident mistakes on the other classes.

Liang, Wang, Hu, He, Feng, A Balanced and Uncertainty-aware Approach for Partial Domain Adaptation, ECCV 2020, eq. 3-8.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.selective import entropy
from convsmith.adaptation.methods.adversarial import AdversarialSettings, domain_loss
from convsmith.adaptation.methods.cdan import certainty
from convsmith.adaptation.methods.method import METHODS, Domains
from convsmith.adaptation.methods.weighted import WeightedTask
from convsmith.adaptation.methods.weighting import WeightSettings
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@dataclass(frozen=True)
class BA3USSettings(AdversarialSettings):
    """Settings of BA3US, besides those of `AdversarialSettings`.

    Args:
        entropy: coefficient of the target's entropy.
        complement: coefficient of the complement entropy (5 for Office-31, 1 for Office-Home in the public code).
        borrowed: share of the source batch lent to the target at the first step; it shrinks to 0.
        weights: of the classes; they sum to 1 in the paper.
    """

    entropy: float = 0.1
    complement: float = 1.0
    borrowed: float = 0.25
    weights: WeightSettings = field(default_factory=lambda: WeightSettings(warmup=0.25))


@METHODS.register("ba3us", settings=BA3USSettings, partial=True)
class BA3US(WeightedTask):
    """Balance the alignment with borrowed source images; weigh classes; complement entropy for the source.

    Differs from the paper: the borrowed images are the first of the shuffled source batch itself instead of a batch of
    their own; class weights have mean 1, are averaged over updates and wait for a warm-up.
    """

    def __init__(self, model: nn.Module, domains: Domains, settings: BA3USSettings) -> None:
        super().__init__(model, domains, settings, settings.weights)
        self.settings = settings
        self.discriminator = ClassDiscriminators(self.features, 1, settings.hidden, settings.dropout)

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return weighted cross-entropy, balanced domain loss, target entropy and complement entropy."""
        s, seen = self.settings, self.look(batch)
        self.observe(seen, step)
        image_weights = self.weighting.weights[seen.source_labels]
        each = F.cross_entropy(seen.source_logits, seen.source_labels, reduction="none")
        classification = (image_weights * each).sum() / image_weights.sum().clamp_min(1e-8)
        strength = self.strength(step, s.ramp_upper, s.ramp_share, self.weighting.start)
        lent = int(s.borrowed * len(batch.source) * (1 - min(1.0, step / self.domains.steps)))
        target_logits = torch.cat([seen.target_logits, seen.source_logits[:lent]])
        source_sure = certainty(seen.source_logits.float().softmax(1)) * image_weights
        target_sure = certainty(target_logits.float().softmax(1))
        domain = domain_loss(
            seen.source_features,
            torch.cat([seen.target_features, seen.source_features[:lent]]),
            self.discriminator,
            reversal=strength,
            source_weights=source_sure / source_sure.mean().clamp_min(1e-8),
            target_weights=target_sure,
        )
        uncertainty = entropy(seen.target_logits)
        complement = complement_loss(seen.source_logits, seen.source_labels, image_weights)
        return Losses(
            classification
            + s.adversarial * domain
            + s.entropy * strength * uncertainty
            + s.complement * strength * complement,
            {
                "classification": classification,
                "domain": domain,
                "entropy": uncertainty,
                "complement": complement,
            },
        )


def complement_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return minus the entropy of the wrong classes, weighted by how wrong the image is (eq. 7), a scalar.

    With ``q_k = p_k / (1 - p_y)`` for k != y: ``mean_i w_i (1 - p_y) * sum_k q_k log q_k / log(K - 1)``.
    """
    p = logits.float().softmax(1)
    own = F.one_hot(labels, p.shape[1]).bool()
    wrong = p.masked_fill(own, 0).sum(1).clamp_min(1e-7)
    q = (p / wrong[:, None]).masked_fill(own, 0)
    uncertain = -torch.special.entr(q).sum(1) / max(torch.tensor(float(p.shape[1] - 1)).log().item(), 1e-7)
    # the weight of the image and of its error are constants, as in the paper
    return (weights.detach() * wrong.detach() * uncertain).sum() / weights.sum().clamp_min(1e-8)
