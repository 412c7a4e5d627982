"""BA3US: lend the target some source images at first, and press down confident mistakes on the other classes.

Liang, Wang, Hu, He, Feng, A Balanced and Uncertainty-aware Approach for Partial Domain Adaptation, ECCV 2020, eq. 3-8;
the authors' training script (their file of losses was never published; it is known from copies).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from convsmith.adaptation.losses.adversarial import certainty, domain_loss
from convsmith.adaptation.losses.selective import entropy
from convsmith.adaptation.methods.adversarial import AdversarialSettings, AdversarialTask, WeightedTask
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, Terms
from convsmith.adaptation.methods.weighting import WeightSettings
from convsmith.arguments import wide


@dataclass(frozen=True)
class BA3USSettings(AdversarialSettings):
    """Settings of BA3US, besides those of `AdversarialSettings`.

    Args:
        entropy: coefficient of the target's entropy, from the first step on.
        complement: coefficient of the complement entropy (5 for Office-31, 1 for Office-Home in the public code).
        borrowed: share of the source batch lent to the target at the first step; it shrinks to 0.
        weights: of the classes; their scale does not matter here.
    """

    entropy: float = 0.1
    complement: float = 1.0
    borrowed: float = 0.25
    weights: WeightSettings = field(default_factory=lambda: WeightSettings(warmup=0.25))


@METHODS.register("ba3us", settings=BA3USSettings, partial=True)
class BA3US(WeightedTask, AdversarialTask):
    """Balance the alignment with borrowed source images; weigh classes; complement entropy for the source.

    Differs from the authors' code: the borrowed images are the first of the shuffled source batch instead of a batch of
    their own, their number shrinks every step instead of in ten; no gradient flows through the entropy weights of the
    domain loss; class weights are averaged over updates and wait for a warm-up.
    """

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        s = self.settings
        self.observe(both, step)
        weights = self.class_weights()[both.source_labels]
        lent = int(s.borrowed * len(weights) * (1 - min(1.0, step / self.domains.steps)))
        domain = self._balanced(both, weights, lent, self.reversal(step))
        complement = complement_loss(both.source_logits, both.source_labels, weights)
        return {
            "classification": (1.0, both.weighted_cross_entropy(weights)),
            "domain": (s.adversarial, domain),
            "entropy": (s.entropy, entropy(both.target_logits)),
            "complement": (s.complement, complement),
        }

    def _balanced(self, both: DomainFeatures, weights: Tensor, lent: int, reversal: float) -> Tensor:
        """Return the domain loss of the source against the target and the first ``lent`` source images."""
        n_s, n_t = len(weights), len(both.target_logits)
        own, others = balanced_weights(certainty(both.source_logits) * weights, certainty(both.target_logits), lent)
        return domain_loss(
            both.source_features,
            torch.cat([both.target_features, both.source_features[:lent]]),
            self.discriminator,
            reversal=reversal,
            # domain_loss divides each side by its images
            source_weights=own * n_s,
            target_weights=others * (n_t + lent),
        )


def balanced_weights(source: Tensor, target: Tensor, lent: int) -> tuple[Tensor, Tensor]:
    """Return the weights [n_s] of the source side and [n_t + lent] of the target side, which sum to 1 together.

    ``source`` [n_s] and ``target`` [n_t] are the images' raw weights. The first ``lent`` source images stand on the
    target side too; both of their places keep the class weight and share the source's normalisation:
    ``(1 + lent / n_s) w_i / (sum of w over both places)`` against ``w_j / sum_j w_j``, all over ``2 + lent / n_s``.
    """
    borrowed = source[:lent]
    share = 1 + lent / len(source)
    source_side = share / (source.sum() + borrowed.sum()).clamp_min(1e-8)
    others = torch.cat([target / target.sum().clamp_min(1e-8), borrowed * source_side])
    return source * source_side / (1 + share), others / (1 + share)


def complement_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Return minus the entropy of the wrong classes, weighted by how wrong the image is (eq. 7), a scalar.

    With ``q_k = p_k / (1 - p_y)`` for k != y and ``v_i = w_i (1 - p_y)`` held constant:
    ``sum_i v_i sum_k q_k log q_k / log(K - 1) / sum_i v_i``. With two classes it is 0.
    """
    log_p = F.log_softmax(wide(logits), dim=1)
    others = log_p.masked_fill(F.one_hot(labels, log_p.shape[1]).bool(), -math.inf)
    log_wrong = others.logsumexp(1)
    log_q = (others - log_wrong[:, None]).masked_fill(others == -math.inf, 0)
    q = (others - log_wrong[:, None]).exp()
    uncertain = (q * log_q).sum(1) / max(math.log(max(log_p.shape[1] - 1, 1)), 1e-7)
    wrong = weights.detach() * log_wrong.detach().exp()
    return (wrong * uncertain).sum() / wrong.sum().clamp_min(1e-8)
