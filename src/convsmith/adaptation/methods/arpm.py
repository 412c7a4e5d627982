"""AR and ARPM: source images are weighed so that the weighted source comes closest to the target.

Gu, Yu, Yang, Sun, Xu, Adversarial Reweighting for Partial Domain Adaptation, NeurIPS 2021, eq. 4-8; Gu et al.,
Adversarial Reweighting with alpha-Power Maximization for Domain Adaptation, IJCV 2024.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.adaptation.evaluation.features import classifier_of, features_and_logits
from convsmith.adaptation.losses.selective import entropy
from convsmith.adaptation.methods.method import METHODS, Common, Domains, DomainTask
from convsmith.adaptation.methods.reweighting import critic_gap, train_critic, worst_weights
from convsmith.adaptation.methods.weighting import evaluating
from convsmith.data.batch import DomainBatch
from convsmith.training.task import Losses


@dataclass(frozen=True)
class ARSettings(Common):
    """Settings of AR and ARPM.

    Args:
        certainty: coefficient of the target's certainty loss.
        loss: ``"entropy"`` (AR) or ``"power"`` (ARPM): minimise ``-mean sum_k p_k^alpha``.
        alpha: the power.
        rho: how far the weights may stand from 1: ``|w - 1|^2 <= rho n``.
        updates: how often the weights are computed anew, evenly over what follows the warm-up.
        critic_steps: updates of the critic each time.
        critic_hidden: width of the critic's two hidden layers.
        warmup: share of all steps before weights and certainty act.
    """

    certainty: float = 0.1
    loss: Literal["entropy", "power"] = "entropy"
    alpha: float = 2.0
    rho: float = 5.0
    updates: int = 4
    critic_steps: int = 200
    critic_hidden: int = 128
    warmup: float = 0.25


class _AdversarialReweighting(DomainTask):
    """The training shared by AR and ARPM; they differ in the certainty loss."""

    image_weights: Tensor
    image_index: Tensor
    class_mean: Tensor
    gap: Tensor

    def __init__(self, model: nn.Module, domains: Domains, settings: ARSettings) -> None:
        super().__init__(model, domains, settings)
        self.settings = settings
        self.start = round(settings.warmup * domains.steps)
        self.every = max(1, (domains.steps - self.start) // settings.updates)
        index = torch.cat([b.index for b in domains.source])
        self.register_buffer("image_index", index.sort().values)
        self.register_buffer("image_weights", torch.ones(len(index)))
        self.register_buffer("class_mean", torch.ones(domains.classes))
        self.register_buffer("gap", torch.zeros(()))

    def before_step(self, step: int) -> None:
        """Compute all image weights anew where they are due."""
        if step >= self.start and (step - self.start) % self.every == 0:
            self._reweigh(step)

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return the weighted cross-entropy and the target's certainty, seen by a classifier held constant."""
        s, seen = self.settings, self.look(batch)
        weights = self.image_weights[torch.searchsorted(self.image_index, seen.source_index)]
        each = F.cross_entropy(seen.source_logits, seen.source_labels, reduction="none")
        classification = (weights * each).mean()
        head = classifier_of(self.model)
        bias = None if head.bias is None else head.bias.detach()
        logits = F.linear(seen.target_features, head.weight.detach(), bias)
        certainty = entropy(logits) if s.loss == "entropy" else -power(logits, s.alpha)
        share = self.strength(step, s.certainty, 1.0, self.start)
        return Losses(
            classification + share * certainty,
            {"classification": classification, "certainty": certainty, "gap": self.gap},
        )

    def class_weights(self) -> Tensor:
        """Return the mean weight [K] of the source images of each class, scaled to mean 1."""
        return self.class_mean

    def _reweigh(self, step: int) -> None:
        s = self.settings
        source, labels, index = self._features(self.domains.source)
        target, _, _ = self._features(self.domains.target)
        # one common length for all features: the critic's slope has a scale to be measured in
        source, target = F.normalize(source, dim=1), F.normalize(target, dim=1)
        weights = self.image_weights[torch.searchsorted(self.image_index, index)]
        # drawn from the step, not from a running generator: a resumed run trains the same critic
        generator = torch.Generator().manual_seed(7919 + step)
        critic = train_critic(
            source, target, weights, steps=s.critic_steps, hidden=s.critic_hidden, generator=generator
        )
        with torch.no_grad():
            fresh = worst_weights(critic(source)[:, 0], s.rho)
        order = index.argsort()
        self.image_weights.copy_(fresh[order])
        sums = torch.zeros_like(self.class_mean).index_add_(0, labels, fresh.to(self.class_mean))
        counts = torch.bincount(labels, minlength=self.classes).clamp_min(1).to(sums)
        mean = sums / counts
        self.class_mean.copy_(mean * (len(mean) / mean.sum()))
        self.gap.fill_(critic_gap(critic, source, target, fresh))

    def _features(self, batches: Any) -> tuple[Tensor, Tensor, Tensor]:
        device = self.image_weights.device
        rows, labels, index = [], [], []
        with evaluating(self.model):
            for batch in batches:
                rows.append(features_and_logits(self.model, batch.images.to(device))[0].float())
                labels.append(batch.labels.to(device))
                index.append(batch.index.to(device))
        return torch.cat(rows), torch.cat(labels), torch.cat(index)


@METHODS.register("ar", settings=ARSettings, partial=True)
class AR(_AdversarialReweighting):
    """Weigh source images against a Wasserstein critic; minimise the target's entropy.

    Differs from the paper: rho is fixed (the public code multiplies and divides it by 1.2 until the critic's gap is in
    a range tuned per task); features are normalised for the critic alone; the weights' problem is solved exactly.
    """


@METHODS.register("arpm", settings=lambda: replace(ARSettings(), loss="power"), partial=True)
class ARPM(_AdversarialReweighting):
    """Weigh source images against a Wasserstein critic; maximise the alpha-power of the target's predictions.

    Differs from the paper: as `AR`.
    """


def power(logits: Tensor, alpha: float) -> Tensor:
    """Return ``mean_i sum_k p_ik^alpha`` of ``softmax(logits)`` [n, K]: 1 if certain, ``K^(1-alpha)`` if uniform."""
    return (alpha * F.log_softmax(logits.float(), dim=1)).exp().sum(1).mean()
