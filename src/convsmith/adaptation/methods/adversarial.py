"""The two-player losses that the methods share: a weighted domain loss with reversal, and the non-saturating GAN form.

Ganin et al., JMLR 2016 (reversal); Goodfellow et al., NeurIPS 2014, section 3, and Tzeng et al., ADDA, CVPR 2017, eq. 8
and 9 (two losses with swapped labels instead of one reversed gradient).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.reversal import reverse_gradient
from convsmith.adaptation.losses.selective import images_per_rank
from convsmith.adaptation.methods.method import Common


@dataclass(frozen=True)
class AdversarialSettings(Common):
    """Settings of every method with one domain discriminator behind a gradient reversal.

    Args:
        hidden: widths of the discriminator.
        dropout: of the discriminator.
        adversarial: coefficient of the domain loss.
        ramp_upper: the reversal's final strength.
        ramp_share: share of all steps after which it is reached.
    """

    hidden: tuple[int, ...] = (1024, 1024)
    dropout: float = 0.5
    adversarial: float = 1.0
    ramp_upper: float = 1.0
    ramp_share: float = 1.0


def domain_loss(
    source_features: Tensor,
    target_features: Tensor,
    discriminator: ClassDiscriminators,
    *,
    reversal: float | None = None,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Return ``1/(n_s + n_t) * (sum_i w_i BCE(D(f_i), 1) + sum_j w_j BCE(D(f_j), 0))``, source 1 and target 0, a
    scalar.

    Shapes: features [n_s, d] and [n_t, d], weights [n_s] and [n_t] (constants; 1 if not given). With ``reversal`` c the
    features receive -c times the gradient.
    """
    n_s, n_t = len(source_features), len(target_features)
    features = torch.cat([source_features, target_features])
    if reversal is not None:
        features = reverse_gradient(features, reversal)
    logits = discriminator(features)[:, 0]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    weights, labels = torch.ones_like(logits), torch.zeros_like(logits)
    labels[:n_s] = 1
    if source_weights is not None:
        weights[:n_s] = source_weights.detach().to(logits)
    if target_weights is not None:
        weights[n_s:] = target_weights.detach().to(logits)
    losses = F.binary_cross_entropy_with_logits(logits, labels, reduction="none") * weights
    return losses.sum() / images_per_rank(n_s + n_t, losses)


def fooling_loss(target_features: Tensor, discriminator: ClassDiscriminators) -> Tensor:
    """Return the mean of ``BCE(D(f), 1)`` over the target [n, d]: the non-saturating loss, D held constant."""
    held = {name: p.detach() for name, p in discriminator.named_parameters()}
    logits = functional_call(discriminator, held, (target_features,))[:, 0]
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))
