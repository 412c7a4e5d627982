"""SAN: one domain discriminator per source class, weighted by how likely each class is in the target.

Cao, Long, Wang, Jordan, Partial Transfer Learning with Selective Adversarial Networks, CVPR 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.selective import SANForm, entropy, selective_adversarial_loss
from convsmith.adaptation.methods.method import METHODS, Common, Domains
from convsmith.adaptation.methods.weighted import WeightedTask
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@dataclass(frozen=True)
class SANSettings(Common):
    """Settings of SAN.

    Args:
        hidden: widths of each class's discriminator; ``()`` for linear probes.
        dropout: of the discriminators.
        form: everything on which paper and public codes disagree, see `SANForm`.
    """

    hidden: tuple[int, ...] = (1024, 1024)
    dropout: float = 0.5
    form: SANForm = field(default_factory=SANForm)


@METHODS.register("san", settings=SANSettings, partial=True)
class SAN(WeightedTask):
    """Align each class with its own discriminator, and ignore classes the target does not hold.

    Total loss: ``CE(source) + adversarial * L_d + entropy * H(target)``, see `selective_adversarial_loss`; during the
    warm-up all class weights are equal, the entropy term is off and nothing is reversed: an adversary that acts before
    the weights know the classes aligns the target with all of them.
    """

    def __init__(self, model: nn.Module, domains: Domains, settings: SANSettings) -> None:
        super().__init__(model, domains, settings, settings.form.weights)
        self.settings, self.form = settings, settings.form
        self.discriminators = ClassDiscriminators(self.features, self.classes, settings.hidden, settings.dropout)

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the three losses of one pair of batches."""
        form, seen = self.form, self.look(batch)
        classification = F.cross_entropy(seen.source_logits, seen.source_labels)
        p_source, p_target = self.observe(seen, step)
        if form.source_weights == "label":
            p_source = F.one_hot(seen.source_labels, self.classes).to(p_source)
        strength = self.strength(step, form.ramp_upper, form.ramp_share, self.weighting.start)
        domain = selective_adversarial_loss(
            seen.source_features,
            seen.target_features,
            p_source,
            p_target,
            self.weighting.weights,
            self.discriminators,
            reversal=strength,
            form=form,
        )
        logits = seen.target_logits
        if form.entropy_on == "both":
            logits = torch.cat([seen.source_logits, seen.target_logits])
        uncertainty = entropy(logits)
        share = form.entropy * (strength if form.entropy_ramp else float(step >= self.weighting.start))
        return Losses(
            classification + form.adversarial * domain + share * uncertainty,
            {"classification": classification, "domain": domain, "entropy": uncertainty},
        )

    def parameter_groups(self, lr: float) -> list[dict[str, Any]]:
        """Return the usual groups; a form that fixes the weight decay fixes it for all."""
        groups = super().parameter_groups(lr)
        if self.form.weight_decay is not None:
            for group in groups:
                group["weight_decay"] = self.form.weight_decay
        return groups
