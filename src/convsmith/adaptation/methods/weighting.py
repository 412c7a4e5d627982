"""Class weights: which source classes the target seems to hold, estimated without its labels.

Cao et al., Selective Adversarial Networks, CVPR 2018 (w_k = mean over the target of the predicted probability of class
k); Cao et al., Partial Adversarial Domain Adaptation, ECCV 2018 (the same weights on the source classifier).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith import arguments
from convsmith.adaptation.losses.gather import sum_over_ranks, world_size
from convsmith.adaptation.losses.operands import matrix
from convsmith.adaptation.methods.method import check_values
from convsmith.arguments import wide
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import evaluating
from convsmith.inspection.outputs import class_scores

Scale = Literal["mean-one", "sum-one", "max-one"]
Estimate = Literal["target", "running-sum", "batch"]


def class_weights(target_probabilities: Tensor, *, scale: Scale = "mean-one") -> Tensor:
    """Return the weight [K] of every class from the target's predicted probabilities [n, K].

    ``w_k = mean_i p_i^k``, scaled so that the weights have mean 1 (the default: the loss keeps its size whatever K is),
    sum to 1, or have maximum 1. No gradient flows through them.

    Examples:
        >>> class_weights(torch.tensor([[0.75, 0.25]])).tolist()
        [1.5, 0.5]
    """
    if len(matrix("target_probabilities", target_probabilities)) == 0:
        rule = "class weights need the probabilities of at least one image"
        raise InvalidArgument(rule, argument="target_probabilities", given=tuple(target_probabilities.shape))
    mass = wide(target_probabilities.detach()).mean(0)
    if not float(mass.sum()) > 0:
        given = f"numbers of mean {float(mass.mean())}"
        raise InvalidArgument("class weights need probabilities", argument="target_probabilities", given=given)
    return scale_weights(mass, scale)


def scale_weights(mass: Tensor, scale: Scale) -> Tensor:
    """Return non-negative ``mass`` [K] scaled to mean 1, sum 1 or maximum 1."""
    arguments.one_of("scale", scale, get_args(Scale))
    if scale == "mean-one":
        return mass * (len(mass) / mass.sum())
    if scale == "sum-one":
        return mass / mass.sum()
    return mass / mass.max()


@dataclass(frozen=True)
class WeightSettings:
    """How class weights are estimated and when they act.

    Args:
        estimate: ``"target"`` is the mean over the whole target every ``every`` steps in eval mode; ``"running-sum"``
            adds up the target batches of all steps so far and forgets nothing (the Caffe code); ``"batch"`` is the mean
            of the current batch, source and target together (train_san.py).
        scale: see `class_weights`.
        inverse_temperature: multiplies the logits before the softmax; 10 and 100 in the Caffe files, 1 in the paper.
        every: steps between estimates of the whole target.
        average: share of the old estimate kept at every new one (0 forgets it).
        warmup: share of all steps during which the weights stay equal.
    """

    estimate: Estimate = "target"
    scale: Scale = "mean-one"
    inverse_temperature: float = 1.0
    every: int = 50
    average: float = 0.5
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_values(self)
        arguments.integer("every", self.every, least=1)
        for name in ("warmup", "average"):
            arguments.number(name, getattr(self, name), below=1)
        arguments.number("inverse_temperature", self.inverse_temperature, above=0)


class ClassWeights(nn.Module):
    """The running estimate; everything it knows is a buffer, so it is saved, resumed and shared between ranks.

    Buffers: ``weights`` [K] as the losses use them, ``mass`` [K] the estimate (sums to 1) or the running sum,
    ``updates`` the number of estimates so far.
    """

    weights: Tensor
    mass: Tensor
    updates: Tensor

    def __init__(self, classes: int, settings: WeightSettings, steps: int) -> None:
        super().__init__()
        self.settings = settings
        self.start = round(settings.warmup * steps)
        start = torch.full((classes,), 1.0)
        self.register_buffer("weights", scale_weights(start, settings.scale))
        self.register_buffer("mass", torch.zeros(classes, dtype=torch.float64))
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def due(self, step: int) -> bool:
        """Say whether the whole target is to be looked at before ``step``."""
        s = self.settings
        return s.estimate == "target" and step >= self.start and (step - self.start) % s.every == 0

    @torch.no_grad()
    def take_target(self, total: Tensor, count: int) -> None:
        """Take in the summed probabilities [K] of ``count`` target images of this rank."""
        total, seen = sum_over_ranks(total.double()), sum_over_ranks(torch.tensor(float(count), device=total.device))
        fresh = total / seen
        keep = self.settings.average if int(self.updates) else 0.0
        self.mass.copy_(keep * self.mass + (1 - keep) * fresh)
        self._publish()

    @torch.no_grad()
    def take_batch(self, source: Tensor, target: Tensor, step: int) -> None:
        """Take in the probabilities of one training batch, for the estimates that live on batches."""
        s = self.settings
        if s.estimate == "target" or step < self.start:
            return
        if s.estimate == "running-sum":
            self.mass.add_(sum_over_ranks(target.double().sum(0)))
        else:
            self.mass.copy_(sum_over_ranks(torch.cat([source, target]).double().mean(0)) / world_size())
        self._publish()

    def _publish(self) -> None:
        self.weights.copy_(scale_weights(self.mass, self.settings.scale))
        self.updates.add_(1)

    def probabilities(self, logits: Tensor) -> Tensor:
        """Return ``softmax(inverse_temperature * logits)``, detached, in float32 at least."""
        return F.softmax(self.settings.inverse_temperature * wide(logits.detach()), dim=1)


def total_probabilities(model: nn.Module, batches: Iterable[Batch], weights: ClassWeights) -> tuple[Tensor, int]:
    """Return the summed class probabilities [K] and the number of images of one pass in eval mode."""
    total, count = torch.zeros_like(weights.mass), 0
    with evaluating(model), torch.no_grad():
        for batch in batches:
            logits = class_scores(model(batch.images.to(total.device)))
            total += weights.probabilities(logits).double().sum(0)
            count += len(batch)
    return total, count
