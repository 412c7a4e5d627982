"""The loss of Selective Adversarial Networks, and every point where paper and public codes disagree as a named switch.

Cao, Long, Wang, Jordan, Partial Transfer Learning with Selective Adversarial Networks, CVPR 2018 (arXiv 1707.07901);
the authors' Caffe release (the published numbers) and their later PyTorch release.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.gather import sum_over_ranks, world_size
from convsmith.adaptation.losses.reversal import reverse_gradient
from convsmith.adaptation.methods.weighting import WeightSettings
from convsmith.errors import InvalidArgument, close_matches


@dataclass(frozen=True)
class SANForm:
    """The nine points of disagreement, in order, and what else a release fixes. The default is the paper's formula.

    1. ``instance_weight``: the probability of class k multiplies the ``"loss"`` of discriminator k (paper, Caffe), or
       the ``"feature"`` it sees (PyTorch), or ``"none"``.
    2. ``class_weight_on``: ``"both"`` players (paper, Caffe), only the gradient that reaches the ``"features"``
       (PyTorch), or ``"none"``.
    3. ``weights.estimate``: ``"target"`` (paper), ``"running-sum"`` (Caffe), ``"batch"`` (PyTorch, train_san).
    4. ``weights.scale``: ``"sum-one"`` (paper), ``"mean-one"`` (Caffe, and the default: the loss keeps its size
       whatever K is), ``"max-one"`` (PyTorch).
    5. ``weights.inverse_temperature``: 1 (paper, PyTorch), 10 or 100 (Caffe).
    6. ``entropy_on``: ``"target"`` (paper, Caffe) or ``"both"`` domains (PyTorch); ``entropy_ramp``: grows with the
       reversal (Caffe).
    7. ``entropy``: its coefficient.
    8. ``adversarial``: the coefficient of the summed discriminator losses.
    9. ``weight_decay``: None leaves it to the training configuration.

    ``ramp_upper`` and ``ramp_share`` are the reversal's final strength and the share of all steps after which it is
    reached; ``source_is`` is the domain label of the source; ``source_weights`` says which discriminators a labelled
    source image counts for, by its prediction (both codes) or by its label.
    """

    instance_weight: Literal["loss", "feature", "none"] = "loss"
    class_weight_on: Literal["both", "features", "none"] = "both"
    weights: WeightSettings = field(default_factory=lambda: WeightSettings(warmup=0.25))
    entropy_on: Literal["target", "both"] = "target"
    entropy_ramp: bool = True
    entropy: float = 1.0
    adversarial: float = 1.0
    weight_decay: float | None = None
    source_weights: Literal["predicted", "label"] = "predicted"
    source_is: Literal[0, 1] = 1
    ramp_upper: float = 1.0
    ramp_share: float = 1.0

    def __post_init__(self) -> None:
        for name, known in (
            ("instance_weight", ("loss", "feature", "none")),
            ("class_weight_on", ("both", "features", "none")),
            ("entropy_on", ("target", "both")),
            ("source_weights", ("predicted", "label")),
            ("source_is", (0, 1)),
        ):
            if getattr(self, name) not in known:
                raise InvalidArgument(f"{name} is one of {known}", argument=name, given=repr(getattr(self, name)))


#: the two public codes (Office-31 settings) and the paper's formula
PRESETS: dict[str, SANForm] = {
    "paper": SANForm(
        weights=WeightSettings(estimate="target", scale="sum-one", average=0.0, every=200),
        entropy=1.0,
        entropy_ramp=False,
    ),
    "caffe": SANForm(
        weights=WeightSettings(estimate="running-sum", scale="mean-one", inverse_temperature=10.0, average=0.0),
        entropy=0.05,
        adversarial=0.1,
        weight_decay=0.0,
        source_is=0,
        ramp_share=0.5,
    ),
    "pytorch": SANForm(
        instance_weight="feature",
        class_weight_on="features",
        weights=WeightSettings(estimate="batch", scale="max-one", average=0.0),
        entropy_on="both",
        entropy_ramp=False,
        entropy=0.2,
        weight_decay=5e-4,
        ramp_share=0.2,
    ),
}


def preset(name: str) -> SANForm:
    """Return one of the presets ``"paper"``, ``"caffe"`` and ``"pytorch"``."""
    if name not in PRESETS:
        raise InvalidArgument("no SAN preset has this name", given=repr(name), hint=close_matches(str(name), PRESETS))
    return PRESETS[name]


def selective_adversarial_loss(
    source_features: Tensor,
    target_features: Tensor,
    source_probabilities: Tensor,
    target_probabilities: Tensor,
    class_weights: Tensor,
    discriminators: ClassDiscriminators,
    *,
    reversal: float | None = None,
    form: SANForm | None = None,
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
        form: which release's reading of points 1 and 2 is computed; the paper's by default.
    """
    form = form or SANForm()
    n_s, n_t, k = len(source_features), len(target_features), discriminators.classes
    if source_probabilities.shape != (n_s, k) or target_probabilities.shape != (n_t, k) or class_weights.shape != (k,):
        raise InvalidArgument(
            f"probabilities are [n, K] and weights [K], with K = {k} as the discriminators have it",
            given=f"{[tuple(t.shape) for t in (source_probabilities, target_probabilities, class_weights)]}",
        )
    features = torch.cat([source_features, target_features])
    instance = torch.cat([source_probabilities, target_probabilities]).detach().to(features.dtype)
    weights = class_weights.detach().to(features.dtype)
    scale = None
    if form.class_weight_on == "features":
        scale = weights if reversal is None else -reversal * weights
    elif reversal is not None:
        features = reverse_gradient(features, reversal)
    logits = discriminators(
        features, instance=instance if form.instance_weight == "feature" else None, gradient_scale=scale
    )
    domain = logits.new_zeros(n_s + n_t, 1)
    domain[:n_s] = 1.0
    if form.source_is == 0:
        domain = 1 - domain
    # float32 at least: the logits may be half under autocast
    logits = logits if logits.dtype == torch.float64 else logits.float()
    losses = F.binary_cross_entropy_with_logits(logits, domain.to(logits).expand_as(logits), reduction="none")
    if form.instance_weight == "loss":
        losses = losses * instance
    if form.class_weight_on == "both":
        losses = losses * weights
    return losses.sum() / images_per_rank(n_s + n_t, losses)


def images_per_rank(count: int, like: Tensor) -> float | Tensor:
    """Return the divisor whose mean over ranks makes the sum of all losses a mean over all images of all ranks."""
    if world_size() == 1:
        return float(count)
    return sum_over_ranks(torch.tensor(float(count), device=like.device)) / world_size()


def entropy(logits: Tensor) -> Tensor:
    """Return the mean entropy of ``softmax(logits)`` [n, K] in nats: log K if uniform, 0 with gradient 0 if one-hot."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    log_p = F.log_softmax(wide, dim=1)
    return -(log_p.exp() * log_p).sum(1).mean()
