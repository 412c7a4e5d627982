"""ARPM: adversarial reweighting with alpha-power maximisation and agreement among neighbours.

Gu, Yu, Yang, Sun, Xu, Adversarial Reweighting with alpha-Power Maximization for Domain Adaptation, IJCV 2024, and its
public code, whose configuration this is (the values of Office-Home).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith import arguments
from convsmith.adaptation.losses.gather import gather
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, Domains, Terms
from convsmith.adaptation.methods.reweighting import ReweightedTask, ReweightingSettings
from convsmith.arguments import wide


@dataclass(frozen=True)
class ARPMSettings(ReweightingSettings):
    """Settings of ARPM, besides those of `ReweightingSettings`.

    Args:
        power: coefficient of the alpha-power, full from the end of the warm-up on (1.0 for Office-31 and VisDA).
        alpha: the power.
        consistency: coefficient of the agreement with neighbours.
        neighbours: nearest target images looked at; and
        second_neighbours: nearest ones of each of these, whose predictions are agreed with.
        label_smoothing: of the source's cross-entropy.
    """

    power: float = 0.3
    alpha: float = 6.0
    consistency: float = 1.0
    neighbours: int = 4
    second_neighbours: int = 3
    label_smoothing: float = 0.1
    updates: int = 5
    critic_steps: int = 1000
    warmup: float = 1 / 6

    def __post_init__(self) -> None:
        super().__post_init__()
        arguments.number("label_smoothing", self.label_smoothing, most=1)
        for name in ("neighbours", "second_neighbours"):
            arguments.integer(name, getattr(self, name), least=1)


@METHODS.register("arpm", settings=ARPMSettings, partial=True)
class ARPM(ReweightedTask):
    """Weigh source images against a critic; make the target's predictions certain and alike among neighbours.

    The features and predictions of all target images are kept in memory (buffers [m, d] and [m, K]) and replaced batch
    by batch.

    Differs from the authors' code: the network is taken as it is (no bottleneck, no feature radius, no initialisation
    of the classifier by principal components), features are normalised for the critic alone; each critic is trained
    anew for fewer steps and not continued; the memory is filled when the target's losses begin; the weights' problem is
    solved exactly; the weighted source is never resampled.
    """

    smoothness = "spectral"
    target_index: Tensor
    memory_features: Tensor
    memory_probabilities: Tensor

    def __init__(self, model: nn.Module, domains: Domains, settings: ARPMSettings) -> None:
        super().__init__(model, domains, settings)
        self.own_index = torch.cat([b.index for b in domains.target])  # of this process's images
        self.register_buffer("target_index", gather(self.own_index).sort().values)
        self.register_buffer("memory_features", torch.zeros(len(self.target_index), self.features))
        self.register_buffer("memory_probabilities", torch.zeros(len(self.target_index), domains.classes))

    def before_step(self, step: int) -> None:
        """Fill the memory when the target's losses begin, and compute the image weights where they are due."""
        if step == self.start:
            whole = self.whole_pass(self.domains.target)
            self._remember(whole.features, whole.logits.softmax(1), self.own_index)
        super().before_step(step)

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        s, weights = self.settings, self.image_weights[both.source_index]
        each = both.cross_entropy("none", s.label_smoothing)
        classification = (weights * each).sum() / (weights.sum() + 1e-5)
        logits = self.frozen_logits(both.target_features)
        parts: dict[str, tuple[float | None, Tensor]] = {
            "classification": (1.0, classification),
            "power": (-s.power if step >= self.start else None, alpha_power(logits, s.alpha)),
            "gap": (None, self.gap),
        }
        if step >= self.start:
            p, features = wide(logits).softmax(1), both.target_features.detach()
            self._remember(features, p.detach(), both.target_index)
            memory = (self.memory_features, self.memory_probabilities)
            near = (s.neighbours, s.second_neighbours)
            agreement = neighbour_consistency(F.normalize(wide(features), dim=1), p, *memory, *near)
            parts["consistency"] = (s.consistency, agreement)
        return parts

    def _remember(self, features: Tensor, probabilities: Tensor, index: Tensor) -> None:
        rows = torch.searchsorted(self.target_index, gather(index.to(self.target_index.device)))
        self.memory_features[rows] = gather(F.normalize(wide(features), dim=1)).to(self.memory_features)
        self.memory_probabilities[rows] = gather(probabilities).to(self.memory_probabilities)


def alpha_power(logits: Tensor, alpha: float) -> Tensor:
    """Return ``mean_i sum_k p_ik^alpha`` of ``softmax(logits)`` [n, K]: 1 if certain, ``K^(1-alpha)`` if uniform."""
    return (alpha * F.log_softmax(wide(logits), dim=1)).exp().sum(1).mean()


def neighbour_consistency(
    features: Tensor,
    probabilities: Tensor,
    memory_features: Tensor,
    memory_probabilities: Tensor,
    neighbours: int = 4,
    second_neighbours: int = 3,
) -> Tensor:
    """Return ``mean_i 0.1 sum_j sum_c (s_jc log s_jc - s_jc p_ic)`` over the second neighbours j of image i, a scalar.

    The neighbours of an image are the nearest of the memory by cosine, itself left out, and j runs over the nearest of
    each of them. ``s`` are remembered predictions, constants: what is learned is that ``p`` agrees with them.

    Shapes: ``features`` [n, d] of length 1, ``probabilities`` [n, K]; the memory [m, d] and [m, K] holds them too.
    """
    # in half precision near images are as near as an image is to itself
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        m = len(memory_features)
        near = (features @ memory_features.T).topk(min(neighbours + 1, m)).indices[:, 1:]
        around = memory_features[near].flatten(0, 1) @ memory_features.T
        second = around.topk(min(second_neighbours + 1, m)).indices[:, 1:].reshape(len(features), -1)
        remembered = memory_probabilities[second]
    agreement = torch.special.xlogy(remembered, remembered) - remembered * probabilities[:, None, :]
    return 0.1 * agreement.sum((1, 2)).mean()
