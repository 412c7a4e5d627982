"""DANN: features that one domain discriminator cannot tell apart.

Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, eq. 9-15.
"""

from __future__ import annotations

from torch.nn import functional as F

from convsmith.adaptation.losses.adversarial import domain_loss
from convsmith.adaptation.methods.adversarial import AdversarialSettings, AdversarialTask
from convsmith.adaptation.methods.method import METHODS
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@METHODS.register("dann", settings=AdversarialSettings, partial=False)
class DANN(AdversarialTask):
    """Learn features that one domain discriminator cannot tell apart (gradient reversal)."""

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return source cross-entropy plus the reversed domain loss."""
        s, seen = self.settings, self.extract_features(batch)
        classification = F.cross_entropy(seen.source_logits, seen.source_labels)
        domain = domain_loss(
            seen.source_features, seen.target_features, self.discriminator, reversal=self.reversal(step, s)
        )
        return Losses(classification + s.adversarial * domain, {"classification": classification, "domain": domain})
