"""What the methods that weigh source classes by the target's predictions share."""

from __future__ import annotations

from torch import Tensor, nn

from convsmith.adaptation.evaluation.features import Look
from convsmith.adaptation.methods.method import Common, Domains, DomainTask
from convsmith.adaptation.methods.weighting import ClassWeights, WeightSettings, total_probabilities


class WeightedTask(DomainTask):
    """A method with one weight for every source class, estimated as its `WeightSettings` say."""

    def __init__(self, model: nn.Module, domains: Domains, settings: Common, weights: WeightSettings) -> None:
        super().__init__(model, domains, settings)
        self.weighting = ClassWeights(self.classes, weights, domains.steps)

    def before_step(self, step: int) -> None:
        """Estimate the class weights from the whole target where they are due."""
        if self.weighting.due(step):
            self.weighting.take_target(*total_probabilities(self.model, self.domains.target, self.weighting))

    def observe(self, seen: Look, step: int) -> tuple[Tensor, Tensor]:
        """Return the probabilities of source and target that weights are made of, after taking them into account."""
        source, target = (self.weighting.probabilities(z) for z in (seen.source_logits, seen.target_logits))
        self.weighting.take_batch(source, target, step)
        return source, target

    def class_weights(self) -> Tensor:
        """Return the weights [K] as the losses use them."""
        return self.weighting.weights
