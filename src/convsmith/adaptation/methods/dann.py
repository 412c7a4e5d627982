"""DANN: features that one domain discriminator cannot tell apart.

Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, eq. 9-15.
"""

from __future__ import annotations

from convsmith.adaptation.methods.adversarial import AdversarialSettings, AdversarialTask
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, Terms


@METHODS.register("dann", settings=AdversarialSettings, partial=False)
class DANN(AdversarialTask):
    """Learn features that one domain discriminator cannot tell apart (gradient reversal)."""

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        return {
            "classification": (1.0, both.cross_entropy()),
            "domain": (self.settings.adversarial, self.domain_loss(both, step)),
        }
