"""DANN: features that one domain discriminator cannot tell apart.

Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, eq. 9-15.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn import functional as F

from convsmith.adaptation.adversarial import domain_loss
from convsmith.adaptation.discriminators import ClassDiscriminators
from convsmith.adaptation.method import METHODS, Common, Domains, DomainTask
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@dataclass(frozen=True)
class DANNSettings(Common):
    """Settings of DANN.

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


@METHODS.register("dann", settings=DANNSettings, partial=False)
class DANN(DomainTask):
    """Learn features that one domain discriminator cannot tell apart (gradient reversal)."""

    def __init__(self, model: nn.Module, domains: Domains, settings: DANNSettings) -> None:
        super().__init__(model, domains, settings)
        self.settings = settings
        self.discriminator = ClassDiscriminators(self.features, 1, settings.hidden, settings.dropout)

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return source cross-entropy plus the reversed domain loss."""
        s, seen = self.settings, self.look(batch)
        classification = F.cross_entropy(seen.source_logits, seen.source_labels)
        strength = self.strength(step, s.ramp_upper, s.ramp_share)
        domain = domain_loss(seen.source_features, seen.target_features, self.discriminator, reversal=strength)
        return Losses(classification + s.adversarial * domain, {"classification": classification, "domain": domain})
