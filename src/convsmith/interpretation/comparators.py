"""Other ways to score the same nodes, behind the same object, so that every claim about routes has its control."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, integer, wide
from convsmith.interpretation.find import _column, class_numbers, collect, look, prepare, row_slices
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.routes import Routes
from convsmith.interpretation.sites import SiteRule, plan_sites
from convsmith.interpretation.solvers.problem import Solution
from convsmith.registry import Registry


@dataclass(frozen=True)
class ScoreRequest:
    """One batch to score: the gated network, the class [B] whose logit counts, integration steps, random stream."""

    network: GatedNetwork
    target: Tensor
    steps: int
    generator: torch.Generator

    @property
    def ones(self) -> Tensor:
        """Open gates [B, total], float64 where the images are, else float32."""
        return wide(self.network.images.new_ones(len(self.target), self.network.plan.total))


#: a scorer returns non-negative scores [B, total]
Scorer = Callable[[ScoreRequest], Tensor]
SCORES: Registry[Scorer] = Registry("unit score", "convsmith.interpretation")

_THETA = 0.5


@checked
def score_units(
    model: nn.Module,
    images: Tensor,
    method: str = "gradient-times-activation",
    *,
    sites: str | SiteRule = "auto",
    layers: Sequence[str] | None = None,
    batch_size: int | None = None,
    steps: int = 10,
    seed: int = 0,
    target: Tensor | None = None,
    labels: Tensor | None = None,
    index: Tensor | None = None,
) -> Routes:
    """Score every node of every image without optimising gates; the result has the shape of `Routes`.

    ``method``: ``"activation"`` mean absolute activation; ``"gradient-times-activation"`` |activation x gradient| of
    the class logit summed over positions (NeuronMCT of Khakzar et al., CVPR 2021); ``"integrated"`` the same averaged
    while the layer's gates go from 0 to 1 in ``steps`` steps (NeuronIntGrad, same paper); ``"effective-path"`` the
    fewest nodes of each layer that make up half of the positive contribution to the class logit; ``"random"``.

    ``target`` [B] int64 is the class whose logit is scored, default the predicted one. In the result ``gates`` are
    scores, and ``kept`` and ``divergence`` describe the network in which nodes with score 0 are switched off.

    Examples:
        >>> scores = score_units(model, images, "activation").gates
    """
    scorer = SCORES[method]
    integer("steps", steps, least=1)
    model, images = prepare(model, images)
    plan = plan_sites(model, images, sites, layers)
    count = len(images)
    labels, index = _column(labels, count, -1, "labels"), _column(index, count, None, "index")
    if target is not None:
        target = class_numbers(model, images, target, "target")
    settings = {"mode": method, "steps": steps, "seed": seed, "sites": plan.kind, "image_size": [*images.shape[1:]]}
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for rows in row_slices(images, batch_size):
        with GatedNetwork(model, plan, images[rows]) as network:
            full, silent = look(network)
            chosen = full.argmax(1) if target is None else target[rows].clone()
            scores = scorer(ScoreRequest(network, chosen, steps, generator)).to(full)
            nan = full.new_full((len(full),), torch.nan)
            passes = torch.full_like(nan, steps * len(plan.sites) if method == "integrated" else 1, dtype=torch.long)
            solution = Solution(scores, nan, passes, torch.ones_like(passes, dtype=torch.bool))
            applied, shown = (scores > 0).to(full), (labels[rows], index[rows])
            parts.append(collect(network, full, silent, solution, settings, *shown, nan, applied))
    return Routes.concatenate(parts)


@SCORES.register("activation")
def _activation(request: ScoreRequest) -> Tensor:
    """Mean absolute activation over positions."""
    with torch.no_grad():
        request.network.logits(watch=True)
        return mean_activations(request.network)


def mean_activations(network: GatedNetwork) -> Tensor:
    """Return the mean absolute activation [B, total] of every channel watched (at a ReLU that of its positive part)."""
    parts = [(maps.relu() if site.rectified else maps.abs()).mean(2) for site, maps in network.watched()]
    return torch.cat(parts, dim=1)


@SCORES.register("gradient-times-activation")
def _contribution(request: ScoreRequest) -> Tensor:
    """|sum over positions of activation x gradient|: the derivative of the class logit by the gate, at gates of one."""
    return _slope(request, request.ones).abs()


@SCORES.register("integrated")
def _integrated(request: ScoreRequest) -> Tensor:
    """Integrated gates, layer by layer: the mean slope of the class logit while the layer's gates go from 0 to 1."""
    ones, steps = request.ones, request.steps
    scores = torch.zeros_like(ones)
    first = 0
    for width in request.network.plan.widths:
        columns = slice(first, first + width)
        for step in range(steps):
            gates = ones.clone()
            gates[:, columns] = (step + 0.5) / steps  # midpoint rule
            scores[:, columns] += _slope(request, gates)[:, columns] / steps
        first += width
    return scores.abs()


@SCORES.register("effective-path")
def _effective(request: ScoreRequest) -> Tensor:
    """Per layer, the fewest nodes whose contributions exceed half of the layer's positive contribution.

    Qiu et al., CVPR 2019. Differs from the paper: contributions are channel by channel to the class logit (activation
    x gradient), where the paper walks back neuron by neuron and needs the connectivity of the network.
    """
    slopes = _slope(request, request.ones).clamp(min=0)
    parts = []
    for part in slopes.split(request.network.plan.widths, dim=1):
        value, place = part.sort(dim=1, descending=True, stable=True)
        before = value.cumsum(1) - value
        chosen = (before < _THETA * value.sum(1, keepdim=True)) & (value > 0)
        parts.append(torch.zeros_like(part).scatter(1, place, value * chosen))
    return torch.cat(parts, dim=1)


@SCORES.register("random")
def _random(request: ScoreRequest) -> Tensor:
    """Uniform random scores in (0, 1], drawn from a generator of their own."""
    return 1 - torch.rand(request.ones.shape, generator=request.generator)


def _slope(request: ScoreRequest, gates: Tensor) -> Tensor:
    """Return the derivative of the class logit by every gate, [B, total]."""
    gates.requires_grad_(True)
    logits = request.network.logits(gates).gather(1, request.target[:, None])
    (slope,) = torch.autograd.grad(logits.sum(), gates)
    return slope
