"""ADDA: a second encoder for the target, trained against a discriminator with the non-saturating GAN loss.

Tzeng, Hoffman, Saenko, Darrell, Adversarial Discriminative Domain Adaptation, CVPR 2017, eq. 7-9.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from convsmith import arguments
from convsmith.adaptation.losses.adversarial import domain_loss, fooling_loss
from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.methods.method import METHODS, AdversaryConfig, Domains, DomainTask
from convsmith.data.batch import DomainBatch
from convsmith.inspection.features import features_and_logits
from convsmith.inspection.modes import copied
from convsmith.training.task import Losses


@dataclass(frozen=True)
class ADDASettings(AdversaryConfig):
    """Settings of ADDA.

    Args:
        pretrain: share of all steps spent on the source alone, before the encoders part.
        mapping: coefficient of the target encoder's loss; its steps are that much smaller than the source's.
    """

    pretrain: float = 0.5
    mapping: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments.number("pretrain", self.pretrain, above=0, below=1)


@METHODS.register("adda", settings=ADDASettings, partial=False)
class ADDA(DomainTask):
    """Train on the source, then move the target's encoder until a discriminator cannot tell it from the source's.

    ``source_model`` is the frozen encoder of the source; ``model`` becomes the target's and keeps the source's
    classifier. Discriminator and encoder are two players with two losses, stepped together.

    Differs from the paper: one optimizer and one step for both players instead of alternating ones. With several
    processes set ``find_unused`` in the training configuration, since each phase leaves some parameters out.
    """

    def __init__(self, model: nn.Module, domains: Domains, settings: ADDASettings) -> None:
        super().__init__(model, domains, settings)
        self.start = max(1, round(settings.pretrain * domains.steps))
        self.discriminator = ClassDiscriminators(self.features, 1, settings.hidden, settings.dropout)
        self.source_model = copied(model).requires_grad_(False)

    def before_step(self, step: int) -> None:
        """Part the encoders when the source is learned."""
        if step == self.start:
            self.source_model.load_state_dict(self.model.state_dict())

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the source's cross-entropy in the first phase, both players' losses in the second."""
        if step < self.start:
            _, logits = features_and_logits(self.model, batch.source.images)
            classification = F.cross_entropy(logits, batch.source.labels)
            return Losses(classification, {"classification": classification})
        self.source_model.eval()
        with torch.no_grad():
            source, _ = features_and_logits(self.source_model, batch.source.images)
        target, _ = features_and_logits(self.model, batch.target.images)
        domain = domain_loss(source, target.detach(), self.discriminator)
        fooling = fooling_loss(target, self.discriminator)
        return Losses(domain + self.settings.mapping * fooling, {"domain": domain, "mapping": fooling})
