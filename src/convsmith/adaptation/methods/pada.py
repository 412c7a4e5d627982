"""PADA: one discriminator; classes that the target does not hold are weighted down in both source losses.

Cao, Ma, Long, Wang, Partial Adversarial Domain Adaptation, ECCV 2018, eq. 4-6.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from convsmith.adaptation.losses.adversarial import domain_loss
from convsmith.adaptation.methods.adversarial import AdversarialSettings
from convsmith.adaptation.methods.method import METHODS
from convsmith.adaptation.methods.weighted import WeightedAdversarialTask
from convsmith.adaptation.methods.weighting import WeightSettings
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@dataclass(frozen=True)
class PADASettings(AdversarialSettings):
    """Settings of PADA, besides those of `AdversarialSettings`.

    Args:
        weights: the class weights; the paper scales them to maximum 1.
    """

    weights: WeightSettings = field(default_factory=lambda: WeightSettings(scale="max-one", warmup=0.25))


@METHODS.register("pada", settings=PADASettings, partial=True)
class PADA(WeightedAdversarialTask):
    """Weigh source classes by the target's mean prediction, in the classifier's and in the adversary's loss.

    Differs from the paper: the weighted cross-entropy divides by the batch's summed weights, as the public code's
    weights of mean 1 do; weights are averaged over updates and wait for a warm-up.
    """

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the weighted cross-entropy and the weighted, reversed domain loss."""
        s, seen = self.settings, self.extract_features(batch)
        self.observe(seen, step)
        classification = self.weighted_cross_entropy(seen)
        domain = domain_loss(
            seen.source_features,
            seen.target_features,
            self.discriminator,
            reversal=self.grl_coeff(step, s.grl_max, s.grl_ramp, self.weighting.start),
            source_weights=self.class_weights()[seen.source_labels],
        )
        return Losses(classification + s.adversarial * domain, {"classification": classification, "domain": domain})
