"""PADA: one discriminator; classes that the target does not hold are weighted down in both source losses.

Cao, Ma, Long, Wang, Partial Adversarial Domain Adaptation, ECCV 2018, eq. 4-6.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.adaptation.adversarial import domain_loss
from convsmith.adaptation.discriminators import ClassDiscriminators
from convsmith.adaptation.method import METHODS, Common, Domains, DomainTask
from convsmith.adaptation.weighting import ClassWeights, WeightSettings, total_probabilities
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@dataclass(frozen=True)
class PADASettings(Common):
    """Settings of PADA.

    Args:
        hidden: widths of the discriminator.
        dropout: of the discriminator.
        adversarial: coefficient of the domain loss.
        ramp_upper: the reversal's final strength.
        ramp_share: share of all steps after which it is reached.
        weights: the class weights; the paper scales them to maximum 1.
    """

    hidden: tuple[int, ...] = (1024, 1024)
    dropout: float = 0.5
    adversarial: float = 1.0
    ramp_upper: float = 1.0
    ramp_share: float = 1.0
    weights: WeightSettings = field(default_factory=lambda: WeightSettings(scale="max-one", warmup=0.25))


@METHODS.register("pada", settings=PADASettings, partial=True)
class PADA(DomainTask):
    """Weigh source classes by the target's mean prediction, in the classifier's and in the adversary's loss.

    Differs from the paper: the weighted cross-entropy divides by the batch's summed weights, as the public code's
    weights of mean 1 do; weights are averaged over updates and wait for a warm-up.
    """

    def __init__(self, model: nn.Module, domains: Domains, settings: PADASettings) -> None:
        super().__init__(model, domains, settings)
        self.settings = settings
        self.discriminator = ClassDiscriminators(self.features, 1, settings.hidden, settings.dropout)
        self.weighting = ClassWeights(self.classes, settings.weights, domains.steps)

    def before_step(self, step: int) -> None:
        """Estimate the class weights from the whole target where they are due."""
        if self.weighting.due(step):
            self.weighting.take_target(*total_probabilities(self.model, self.domains.target, self.weighting))

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the weighted cross-entropy and the weighted, reversed domain loss."""
        s, seen = self.settings, self.look(batch)
        self.weighting.take_batch(
            self.weighting.probabilities(seen.source_logits), self.weighting.probabilities(seen.target_logits), step
        )
        weights = self.weighting.weights
        classification = F.cross_entropy(seen.source_logits, seen.source_labels, weight=weights)
        domain = domain_loss(
            seen.source_features,
            seen.target_features,
            self.discriminator,
            reversal=self.strength(step, s.ramp_upper, s.ramp_share, self.weighting.start),
            source_weights=weights[seen.source_labels],
        )
        return Losses(classification + s.adversarial * domain, {"classification": classification, "domain": domain})

    def class_weights(self) -> Tensor:
        """Return the weights [K] as the losses use them."""
        return self.weighting.weights
