"""The loss of Selective Adversarial Networks, with the readings of paper and public codes as named switches.

Cao, Long, Wang, Jordan, Partial Transfer Learning with Selective Adversarial Networks, CVPR 2018 (arXiv 1707.07901);
the authors' Caffe release (the published numbers) and their later PyTorch release.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from convsmith import arguments
from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.gather import count_per_rank
from convsmith.adaptation.losses.operands import matrix, vector
from convsmith.adaptation.losses.reversal import reverse_gradient
from convsmith.arguments import wide

InstanceWeight = Literal["loss", "feature", "none"]
ClassWeightOn = Literal["both", "features", "none"]


@arguments.checked
def selective_adversarial_loss(
    source_features: Tensor,
    target_features: Tensor,
    source_probabilities: Tensor,
    target_probabilities: Tensor,
    class_weights: Tensor,
    discriminators: ClassDiscriminators,
    *,
    reversal: float | None = None,
    instance_weight: InstanceWeight = "loss",
    class_weight_on: ClassWeightOn = "both",
    source_is: Literal[0, 1] = 1,
) -> Tensor:
    """Return the SAN discriminator loss, a scalar.

    ``1/(n_s + n_t) * sum_k w_k sum_i p_i^k BCE(G_k(f_i), d_i)`` over source and target, d = 1 for source. The weights
    and probabilities are constants: no gradient flows through them.

    Shapes: features [n_s, d] and [n_t, d], n_s and n_t may differ; probabilities [n_s, K] and [n_t, K]; weights [K].

    Args:
        source_features: what the discriminators see.
        target_features: the same of the target.
        source_probabilities: which discriminator an image counts for.
        target_probabilities: the same of the target.
        class_weights: as `convsmith.adaptation.class_weights` gives them.
        discriminators: the bank of K.
        reversal: with a number c, the features receive ``-c`` times the gradient (one reversal in front of the block)
            while the discriminators learn as they are; None leaves the gradient alone.
        instance_weight: the probability of class k multiplies the ``"loss"`` of discriminator k (paper, Caffe), or the
            ``"feature"`` it sees (PyTorch), or ``"none"``.
        class_weight_on: ``"both"`` players (paper, Caffe), only the gradient that reaches the ``"features"`` (PyTorch),
            or ``"none"``.
        source_is: the domain label of the source.

    Examples:
        >>> even, discriminators = torch.full((6, 3), 1 / 3), ClassDiscriminators(4, 3, hidden=(8,))
        >>> x, y = torch.randn(2, 6, 4)
        >>> loss = selective_adversarial_loss(x, y, even, even, torch.ones(3), discriminators)
    """
    arguments.one_of("instance_weight", instance_weight, ("loss", "feature", "none"))
    arguments.one_of("class_weight_on", class_weight_on, ("both", "features", "none"))
    arguments.one_of("source_is", source_is, (0, 1))
    k, n_s, n_t = discriminators.classes, len(matrix("source_features", source_features)), len(target_features)
    matrix("target_features", target_features, columns=source_features.shape[1])
    matrix("source_probabilities", source_probabilities, rows=n_s, columns=k)
    matrix("target_probabilities", target_probabilities, rows=n_t, columns=k)
    vector("class_weights", class_weights, length=k)
    features = torch.cat([source_features, target_features])
    instance = torch.cat([source_probabilities, target_probabilities]).detach().to(features.dtype)
    weights = class_weights.detach().to(features.dtype)
    scale = None
    if class_weight_on == "features":
        scale = weights if reversal is None else -reversal * weights
    elif reversal is not None:
        features = reverse_gradient(features, reversal)
    logits = discriminators(features, instance=instance if instance_weight == "feature" else None, gradient_scale=scale)
    logits = wide(logits)
    domain = logits.new_full((n_s + n_t, 1), 1 - source_is)
    domain[:n_s] = source_is
    losses = F.binary_cross_entropy_with_logits(logits, domain.expand_as(logits), reduction="none")
    if instance_weight == "loss":
        losses = losses * instance
    if class_weight_on == "both":
        losses = losses * weights
    return losses.sum() / count_per_rank(n_s + n_t, losses)


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of ``softmax(logits)`` [n, K] in nats: log K if uniform, 0 with gradient 0 if one-hot.

    Examples:
        >>> round(float(entropy(torch.zeros(5, 2))), 4)
        0.6931
    """
    log_p = F.log_softmax(wide(matrix("logits", logits)), dim=1)
    return -(log_p.exp() * log_p).sum(1).mean()
