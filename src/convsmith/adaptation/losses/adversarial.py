"""The two-player losses that the methods share: a weighted domain loss with reversal, and the non-saturating GAN form.

Ganin et al., JMLR 2016, eq. 9 (reversal); Goodfellow et al., NeurIPS 2014, section 3, and Tzeng et al., ADDA, CVPR
2017, eq. 7 to 9 (two losses with swapped labels instead of one reversed gradient).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn import functional as F

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.gather import count_per_rank
from convsmith.adaptation.losses.operands import matrix, vector
from convsmith.adaptation.losses.reversal import reverse_gradient
from convsmith.arguments import wide


def domain_loss(
    source_features: Tensor,
    target_features: Tensor,
    discriminator: ClassDiscriminators,
    *,
    reversal: float | None = None,
    source_weights: Tensor | None = None,
    target_weights: Tensor | None = None,
) -> Tensor:
    """Return ``1/n_s sum_i w_i BCE(D(f_i), 1) + 1/n_t sum_j w_j BCE(D(f_j), 0)``, source 1 and target 0, a scalar.

    Each domain is divided by its own number of images, as in the papers of DANN (eq. 9), ADDA (eq. 7), CDAN, PADA, IWAN
    and ETN; the loss of equal batches is twice that of public codes that average over both.

    Shapes: features [n_s, d] and [n_t, d], weights [n_s] and [n_t] (constants; 1 if not given). With ``reversal`` c the
    features receive -c times the gradient. Several processes divide by the images of all of them.
    """
    source_features = matrix("source_features", source_features)
    target_features = matrix("target_features", target_features, columns=source_features.shape[1])
    n_s = len(source_features)
    features = torch.cat([source_features, target_features])
    if reversal is not None:
        features = reverse_gradient(features, reversal)
    logits = wide(discriminator(features)[:, 0])
    parts = []
    for name, own, label, weights in (
        ("source_weights", logits[:n_s], 1.0, source_weights),
        ("target_weights", logits[n_s:], 0.0, target_weights),
    ):
        losses = F.binary_cross_entropy_with_logits(own, torch.full_like(own, label), reduction="none")
        if weights is not None:
            losses = losses * vector(name, weights, length=len(own)).detach().to(losses)
        parts.append(losses.sum() / count_per_rank(len(own), losses))
    return torch.stack(parts).sum()


def fooling_loss(target_features: Tensor, discriminator: ClassDiscriminators) -> Tensor:
    """Return the mean of ``BCE(D(f), 1)`` over the target [n, d]: the non-saturating loss, D held constant."""
    held = {name: p.detach() for name, p in discriminator.named_parameters()}
    logits = wide(functional_call(discriminator, held, (target_features,))[:, 0])
    return F.binary_cross_entropy_with_logits(logits, torch.ones_like(logits))


def certainty(logits: Tensor) -> Tensor:
    """Return ``1 + exp(-H(p))`` [n] of ``p = softmax(logits)`` [n, K], in (1, 2], without gradient (CDAN+E, BA3US)."""
    log_p = F.log_softmax(wide(logits.detach()), dim=1)
    return 1 + torch.exp((log_p.exp() * log_p).sum(1))
