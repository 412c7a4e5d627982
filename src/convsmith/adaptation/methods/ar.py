"""AR: source images are weighed so that the weighted source comes closest to the target.

Gu, Yu, Yang, Sun, Xu, Adversarial Reweighting for Partial Domain Adaptation, NeurIPS 2021, eq. 4-8.
"""

from __future__ import annotations

from dataclasses import dataclass

from convsmith.adaptation.losses.selective import entropy
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, Terms
from convsmith.adaptation.methods.reweighting import ReweightedTask, ReweightingSettings


@dataclass(frozen=True)
class ARSettings(ReweightingSettings):
    """Settings of AR, besides those of `ReweightingSettings`.

    Args:
        entropy: coefficient of the target's entropy at the end of its ramp.
    """

    entropy: float = 0.1


@METHODS.register("ar", settings=ARSettings, partial=True)
class AR(ReweightedTask):
    """Weigh source images against a Wasserstein critic; minimise the target's entropy, seen by a frozen classifier.

    Differs from the paper: rho is fixed (the public code multiplies and divides it by 1.2 until the critic's gap is in
    a range tuned per task); features are normalised for the critic alone; each critic is trained anew; the entropy's
    coefficient is ramped; the weights' problem is solved exactly.
    """

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        return {
            "classification": (1.0, (self.image_weights[both.source_index] * both.cross_entropy("none")).mean()),
            "entropy": (
                self.grl_coeff(step, self.settings.entropy, 1.0),
                entropy(self.frozen_logits(both.target_features)),
            ),
            "gap": (None, self.gap),
        }
