"""DANN: features that one domain discriminator cannot tell apart.

Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, eq. 9-15.
"""

from __future__ import annotations

from torch import nn
from torch.nn import functional as F

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.methods.adversarial import AdversarialSettings, domain_loss
from convsmith.adaptation.methods.method import METHODS, Domains, DomainTask
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@METHODS.register("dann", settings=AdversarialSettings, partial=False)
class DANN(DomainTask):
    """Learn features that one domain discriminator cannot tell apart (gradient reversal)."""

    def __init__(self, model: nn.Module, domains: Domains, settings: AdversarialSettings) -> None:
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
