"""What the methods that weigh source classes by the target's predictions share."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.adaptation.evaluation.features import DomainFeatures
from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.methods.method import Domains, DomainTask, MethodConfig
from convsmith.adaptation.methods.weighting import ClassWeights, WeightSettings, total_probabilities


class WeightedTask(DomainTask):
    """A method with one weight for every source class, estimated as its `WeightSettings` say."""

    def __init__(self, model: nn.Module, domains: Domains, settings: MethodConfig, weights: WeightSettings) -> None:
        super().__init__(model, domains, settings)
        self.weighting = ClassWeights(self.classes, weights, domains.steps)

    def before_step(self, step: int) -> None:
        """Estimate the class weights from the whole target where they are due."""
        if self.weighting.due(step):
            self.weighting.take_target(*total_probabilities(self.model, self.domains.target, self.weighting))

    def observe(self, seen: DomainFeatures, step: int) -> tuple[Tensor, Tensor]:
        """Return the probabilities of source and target that weights are made of, after taking them into account."""
        source, target = (self.weighting.probabilities(z) for z in (seen.source_logits, seen.target_logits))
        self.weighting.take_batch(source, target, step)
        return source, target

    def class_weights(self) -> Tensor:
        """Return the weights [K] as the losses use them."""
        return self.weighting.weights


class WeightedAdversarialTask(WeightedTask):
    """The same with one domain discriminator, for methods that weigh both losses of the source (PADA, BA3US)."""

    def __init__(self, model: nn.Module, domains: Domains, settings: Any) -> None:
        super().__init__(model, domains, settings, settings.weights)
        self.discriminator = ClassDiscriminators(self.features, 1, settings.hidden, settings.dropout)

    def weighted_cross_entropy(self, seen: DomainFeatures) -> Tensor:
        """Return ``sum_i w_{y_i} CE_i / sum_i w_{y_i}`` of the source batch, 0 if no image has a weight."""
        weights = self.class_weights()[seen.source_labels]
        each = F.cross_entropy(seen.source_logits, seen.source_labels, reduction="none")
        return (weights * each).sum() / weights.sum().clamp_min(1e-8)
