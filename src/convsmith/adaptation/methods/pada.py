"""PADA: one discriminator; classes that the target does not hold are weighted down in both source losses.

Cao, Ma, Long, Wang, Partial Adversarial Domain Adaptation, ECCV 2018, eq. 4-6.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from convsmith.adaptation.methods.adversarial import AdversarialSettings, AdversarialTask, WeightedTask
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, Terms
from convsmith.adaptation.methods.weighting import WeightSettings


@dataclass(frozen=True)
class PADASettings(AdversarialSettings):
    """Settings of PADA, besides those of `AdversarialSettings`.

    Args:
        weights: the class weights; the paper scales them to maximum 1.
    """

    weights: WeightSettings = field(default_factory=lambda: WeightSettings(scale="max-one", warmup=0.25))


@METHODS.register("pada", settings=PADASettings, partial=True)
class PADA(WeightedTask, AdversarialTask):
    """Weigh source classes by the target's mean prediction, in the classifier's and in the adversary's loss.

    Differs from the paper: the weighted cross-entropy divides by the batch's summed weights, as the public code's
    weights of mean 1 do; weights are averaged over updates and wait for a warm-up.
    """

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        self.observe(both, step)
        weights = self.class_weights()[both.source_labels]
        domain = self.domain_loss(both, step, weights)
        return {
            "classification": (1.0, both.weighted_cross_entropy(weights)),
            "domain": (self.settings.adversarial, domain),
        }
