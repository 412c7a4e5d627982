"""What methods with one domain discriminator, and those that weigh source classes by the target's, share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from convsmith import arguments
from convsmith.adaptation.losses.adversarial import domain_loss
from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.methods.method import AdversaryConfig, DomainFeatures, Domains, DomainTask, PairConfig
from convsmith.adaptation.methods.weighting import ClassWeights, WeightSettings, total_probabilities


@dataclass(frozen=True)
class AdversarialSettings(PairConfig, AdversaryConfig):
    """Settings of every method with one domain discriminator behind a gradient reversal.

    Args:
        adversarial: coefficient of the domain loss.
        grl_max: the reversal's coefficient at the end of its ramp.
        grl_ramp: share of the steps after the warm-up (of all where there is none) over which it is reached.
    """

    adversarial: float = 1.0
    grl_max: float = 1.0
    grl_ramp: float = 1.0


@dataclass(frozen=True)
class WarmedSettings(AdversarialSettings):
    """The same for methods that weigh images once the classifier knows something, and sharpen the target's predictions.

    Args:
        entropy: coefficient of the target's entropy.
        warmup: share of all steps before weights and entropy act.
    """

    entropy: float = 0.1
    warmup: float = 0.25

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments.number("warmup", self.warmup, below=1)


class AdversarialTask(DomainTask):
    """A method with one domain discriminator on the features."""

    def __init__(self, model: nn.Module, domains: Domains, settings: AdversarialSettings, width: int = 0) -> None:
        super().__init__(model, domains, settings)
        self.discriminator = ClassDiscriminators(width or self.features, 1, settings.hidden, settings.dropout)

    def reversal(self, step: int) -> float:
        """Return the reversal's coefficient at ``step``."""
        return self.grl_coeff(step, self.settings.grl_max, self.settings.grl_ramp)

    def domain_loss(self, both: DomainFeatures, step: int, source_weights: Tensor | None = None) -> Tensor:
        """Return the reversed domain loss of both domains' features."""
        return domain_loss(
            both.source_features,
            both.target_features,
            self.discriminator,
            reversal=self.reversal(step),
            source_weights=source_weights,
        )


class WeightedTask(DomainTask):
    """A method with one weight for every source class, estimated as its `WeightSettings` say."""

    def __init__(
        self, model: nn.Module, domains: Domains, settings: Any, weights: WeightSettings | None = None
    ) -> None:
        super().__init__(model, domains, settings)
        self.weighting = ClassWeights(self.classes, weights or settings.weights, domains.steps)
        self.start = self.weighting.start

    def before_step(self, step: int) -> None:
        """Estimate the class weights from the whole target where they are due."""
        if self.weighting.due(step):
            self.weighting.take_target(*total_probabilities(self.model, self.domains.target, self.weighting))

    def observe(self, both: DomainFeatures, step: int) -> tuple[Tensor, Tensor]:
        """Return the probabilities of source and target that weights are made of, after taking them into account."""
        source, target = (self.weighting.probabilities(z) for z in (both.source_logits, both.target_logits))
        self.weighting.take_batch(source, target, step)
        return source, target

    def class_weights(self) -> Tensor:
        """Return the weights [K] as the losses use them."""
        return self.weighting.weights
