"""AFN: let the feature norms of both domains grow in small steps.

Xu, Li, Yang, Lin, Larger Norm More Transferable: An Adaptive Feature Norm Approach, ICCV 2019, eq. 6 (stepwise).
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from convsmith.adaptation.methods.method import METHODS, DomainFeatures, DomainTask, PairConfig, Terms
from convsmith.arguments import wide


@dataclass(frozen=True)
class AFNSettings(PairConfig):
    """Settings of AFN.

    Args:
        norm: coefficient of the norm loss; the paper's 0.05 goes with its learning rate of 0.001, a larger rate wants a
            smaller coefficient: 0.05 with rate 0.05 killed every ReLU of a small network.
        step_size: how much longer each feature is to become.
    """

    norm: float = 0.05
    step_size: float = 1.0


@METHODS.register("afn", settings=AFNSettings, partial=True)
class AFN(DomainTask):
    """Enlarge the feature norms of both domains step by step; no adversary, no weights.

    Differs from the paper: without its bottleneck and its norm-preserving dropout; the model is taken as it is.
    """

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        s = self.settings
        norm = norm_loss(both.source_features, s.step_size) + norm_loss(both.target_features, s.step_size)
        return {"classification": (1.0, both.cross_entropy()), "norm": (s.norm, norm)}


def norm_loss(features: Tensor, step_size: float) -> Tensor:
    """Return ``mean (|f| - (constant |f| + step))^2`` of features [n, d]: a pull of constant strength outwards."""
    length = wide(features).norm(dim=1)
    return (length - (length.detach() + step_size)).square().mean()
