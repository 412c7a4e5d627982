"""SAN: one domain discriminator per source class, weighted by how likely each class is in the target.

Cao, Long, Wang, Jordan, Partial Transfer Learning with Selective Adversarial Networks, CVPR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from torch.nn import functional as F

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.selective import ClassWeightOn, InstanceWeight, entropy, selective_adversarial_loss
from convsmith.adaptation.methods.adversarial import WeightedTask
from convsmith.adaptation.methods.method import (
    METHODS,
    AdversaryConfig,
    DomainFeatures,
    Domains,
    PairConfig,
    Terms,
    check_values,
)
from convsmith.adaptation.methods.weighting import WeightSettings


@dataclass(frozen=True)
class SANVariant:
    """The points on which paper and releases disagree; the default is the paper's formula.

    Args:
        instance_weight: the probability of class k multiplies the ``"loss"`` of discriminator k (paper, Caffe), the
            ``"feature"`` it sees (PyTorch), or ``"none"``.
        class_weight_on: the class weights reach ``"both"`` players (paper, Caffe), only the gradient of the
            ``"features"`` (PyTorch), or ``"none"``.
        weights: ``estimate`` is ``"target"`` in the paper, ``"running-sum"`` in Caffe, ``"batch"`` in PyTorch
            (train_san); ``scale`` is ``"sum-one"``, ``"mean-one"`` (the default: the loss keeps its size whatever K is)
            and ``"max-one"``.
        entropy_on: whose entropy is lowered: ``"target"`` (paper, Caffe) or ``"both"`` domains (PyTorch).
        entropy_ramp: let the entropy term grow with the reversal (Caffe).
        entropy: coefficient of the entropy.
        adversarial: coefficient of the summed discriminator losses.
        weight_decay: of the run; none leaves it to the training configuration.
        source_weights: which discriminators a source image counts for, by its prediction (both codes) or its label.
        source_is: domain label of the source.
        grl_max: the reversal's coefficient at the end of its ramp.
        grl_ramp: share of the steps after the warm-up over which it is reached.
    """

    instance_weight: InstanceWeight = "loss"
    class_weight_on: ClassWeightOn = "both"
    weights: WeightSettings = field(default_factory=lambda: WeightSettings(warmup=0.25))
    entropy_on: Literal["target", "both"] = "target"
    entropy_ramp: bool = True
    entropy: float = 1.0
    adversarial: float = 1.0
    weight_decay: float | None = None
    source_weights: Literal["predicted", "label"] = "predicted"
    source_is: Literal[0, 1] = 1
    grl_max: float = 1.0
    grl_ramp: float = 1.0

    def __post_init__(self) -> None:
        check_values(self)


#: the two public codes (Office-31 settings) and the paper's formula
VARIANTS: dict[str, SANVariant] = {
    "paper": SANVariant(
        weights=WeightSettings(estimate="target", scale="sum-one", average=0.0, every=200),
        entropy=1.0,
        entropy_ramp=False,
    ),
    "caffe": SANVariant(
        weights=WeightSettings(estimate="running-sum", scale="mean-one", inverse_temperature=10.0, average=0.0),
        entropy=0.05,
        adversarial=0.1,
        weight_decay=0.0,
        source_is=0,
        grl_ramp=0.5,
    ),
    "pytorch": SANVariant(
        instance_weight="feature",
        class_weight_on="features",
        weights=WeightSettings(estimate="batch", scale="max-one", average=0.0),
        entropy_on="both",
        entropy_ramp=False,
        entropy=0.2,
        weight_decay=5e-4,
        grl_ramp=0.2,
    ),
}


@dataclass(frozen=True)
class SANSettings(PairConfig, AdversaryConfig):
    """Settings of SAN.

    Args:
        variant: everything on which paper and public codes disagree, see `SANVariant`.
    """

    variant: SANVariant = field(default_factory=SANVariant)


@METHODS.register("san", settings=SANSettings, named={"variant": VARIANTS}, partial=True)
class SAN(WeightedTask):
    """Align each class with its own discriminator, and ignore classes the target does not hold.

    Total loss: ``CE(source) + adversarial * L_d + entropy * H(target)``, see `selective_adversarial_loss`; during the
    warm-up all class weights are equal, the entropy term is off and nothing is reversed: an adversary that acts before
    the weights know the classes aligns the target with all of them.
    """

    def __init__(self, model: nn.Module, domains: Domains, settings: SANSettings) -> None:
        super().__init__(model, domains, settings, settings.variant.weights)
        self.variant = settings.variant
        self.discriminators = ClassDiscriminators(self.features, self.classes, settings.hidden, settings.dropout)

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        v = self.variant
        p_source, p_target = self.observe(both, step)
        if v.source_weights == "label":
            p_source = F.one_hot(both.source_labels, self.classes).to(p_source)
        reversal = self.grl_coeff(step, v.grl_max, v.grl_ramp)
        domain = selective_adversarial_loss(
            both.source_features,
            both.target_features,
            p_source,
            p_target,
            self.weighting.weights,
            self.discriminators,
            reversal=reversal,
            instance_weight=v.instance_weight,
            class_weight_on=v.class_weight_on,
            source_is=v.source_is,
        )
        logits = both.target_logits
        if v.entropy_on == "both":
            logits = torch.cat([both.source_logits, both.target_logits])
        share = v.entropy * (reversal if v.entropy_ramp else float(step >= self.start))
        return {
            "classification": (1.0, both.cross_entropy()),
            "domain": (v.adversarial, domain),
            "entropy": (share, entropy(logits)),
        }

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the usual groups; a variant that fixes the weight decay fixes it for all."""
        groups = super().parameter_groups(lr)
        if self.variant.weight_decay is not None:
            for group in groups:
                group["weight_decay"] = self.variant.weight_decay
        return groups
