"""What the methods with one domain discriminator share: its settings and itself."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.methods.method import Domains, DomainTask, MethodConfig


@dataclass(frozen=True)
class AdversarialSettings(MethodConfig):
    """Settings of every method with one domain discriminator behind a gradient reversal.

    Args:
        hidden: widths of the discriminator.
        dropout: of the discriminator.
        adversarial: coefficient of the domain loss.
        grl_max: the reversal's coefficient at the end of its ramp.
        grl_ramp: share of all steps after which it is reached.
    """

    hidden: tuple[int, ...] = (1024, 1024)
    dropout: float = 0.5
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


class AdversarialTask(DomainTask):
    """A method with one domain discriminator on the features."""

    def __init__(self, model: nn.Module, domains: Domains, settings: AdversarialSettings, width: int = 0) -> None:
        super().__init__(model, domains, settings)
        self.discriminator = ClassDiscriminators(width or self.features, 1, settings.hidden, settings.dropout)

    def reversal(self, step: int, settings: AdversarialSettings, start: int = 0) -> float:
        """Return the reversal's coefficient at ``step``, 0 up to ``start``."""
        return self.grl_coeff(step, settings.grl_max, settings.grl_ramp, start)
