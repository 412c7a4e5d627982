"""Switch nodes off, or only some on, and see what is left of the accuracy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, one_of, tensor
from convsmith.errors import InvalidArgument
from convsmith.interpretation.find import class_numbers, prepare, row_slices
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.routes import Routes
from convsmith.interpretation.sites import SitePlan, plan_sites
from convsmith.training.evaluation import wilson

ORDERS = ("critical", "random", "least")


@dataclass(frozen=True)
class Curve:
    """Accuracy [F] with 95 % Wilson intervals at F fractions of switched-off (or kept) nodes, and by class [F, K].

    ``by_class`` holds NaN for a class without images. ``correct`` [F, B] bool is what everything is computed from.
    """

    fractions: tuple[float, ...]
    accuracy: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    by_class: Tensor
    correct: Tensor
    order: str
    keep: bool


@checked
def apply_routes(
    model: nn.Module, images: Tensor, gates: Routes | Mapping[str, Tensor], *, batch_size: int | None = None
) -> Tensor:
    """Return logits [B, K] of the network with these gates on; the model is as before afterwards.

    ``gates``: `Routes`, or layer name to [B, C_l] (or [1, C_l] / [C_l] for all images alike). Layers that are not
    named stay open.

    Examples:
        >>> logits = apply_routes(model, images, find_routes(model, images, steps=5))
    """
    model, images = prepare(model, images)
    named = gates.gates if isinstance(gates, Routes) else gates
    plan, values = plan_gates(model, images, named) if named else (SitePlan((), "none", ()), None)
    return _run(model, images, plan, values, batch_size)


@checked
def ablate(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    routes: Routes,
    fractions: Sequence[float],
    *,
    order: str = "critical",
    **settings: Any,
) -> list[float]:
    """Return the accuracy after switching off each of ``fractions`` of all nodes, `removal_curve` without intervals.

    Examples:
        >>> without = ablate(model, images, labels, find_routes(model, images, steps=5), [0.0, 0.1])
    """
    return list(removal_curve(model, images, labels, routes, fractions, order=order, **settings).accuracy)


@checked
def removal_curve(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    routes: Routes,
    fractions: Sequence[float],
    *,
    order: str = "critical",
    keep: bool = False,
    by: str = "image",
    seed: int = 0,
    batch_size: int | None = None,
) -> Curve:
    """Switch off a fraction of all nodes, image by image, and measure accuracy with intervals.

    ``order``: ``"critical"`` highest gate or score first, ``"least"`` lowest first, ``"random"``. Ties (many gates are
    0) are broken at random with ``seed``. ``keep=True`` turns it round: only that fraction stays on. ``by="class"``
    ranks by the mean over the images of the same label. Fraction x total is rounded to whole nodes (at least one
    for a fraction above 0).

    Examples:
        >>> curve = removal_curve(model, images, labels, find_routes(model, images, steps=5), [0.0, 0.1])
    """
    one_of("order", order, ORDERS)
    one_of("by", by, ("image", "class"))
    fractions = [float(share) for share in fractions]
    if not fractions or not all(0 <= f <= 1 for f in fractions):
        raise InvalidArgument("fractions lie in [0, 1]", argument="fractions", given=fractions)
    if len(routes) != len(images):
        raise InvalidArgument("one route per image", argument=f"{len(images)} images", given=f"{len(routes)} routes")
    model, images = prepare(model, images)
    labels = class_numbers(model, images, labels)
    plan, gates = plan_gates(model, images, routes.gates)
    score = gates.to(images.device).double()
    if by == "class":
        for label in labels.unique():
            score[labels == label] = score[labels == label].mean(0, keepdim=True)
    ranked = _rank(score, order, seed)
    correct = []
    for fraction in fractions:
        count = max(round(fraction * plan.total), 1) if fraction > 0 else 0
        chosen = torch.zeros_like(score).scatter(1, ranked[:, :count], 1.0)
        gates = chosen if keep else 1 - chosen
        logits = _run(model, images, plan, gates.to(images.dtype), batch_size)
        correct.append(logits.argmax(1) == labels)
    right, labels = torch.stack(correct).cpu(), labels.cpu()
    low, high = zip(*(wilson(float(row.sum()), len(labels)) for row in right), strict=True)
    by_class = torch.full((len(fractions), int(labels.max()) + 1), torch.nan)
    for label in labels.unique().tolist():
        by_class[:, label] = right[:, labels == label].float().mean(1)
    accuracy = tuple(right.double().mean(1).tolist())
    return Curve(tuple(fractions), accuracy, low, high, by_class, right, order, keep)


def _rank(score: Tensor, order: str, seed: int) -> Tensor:
    """Node numbers [B, total], first to go first; ties in random order."""
    generator = torch.Generator().manual_seed(seed)
    shuffle = torch.rand(score.shape, generator=generator).to(score.device).argsort(1)
    if order == "random":
        return shuffle
    shuffled = score.gather(1, shuffle)
    place = shuffled.sort(dim=1, descending=order == "critical", stable=True).indices
    return shuffle.gather(1, place)


def plan_gates(model: nn.Module, images: Tensor, gates: Mapping[str, Tensor]) -> tuple[SitePlan, Tensor]:
    """Return the plan of exactly these layers, whatever rule found them, and their gates [B, total]."""
    plan, rows, parts = plan_sites(model, images, layers=tuple(gates)), len(images), []
    for site in plan.sites:
        g = tensor(f"gates of {site.name}", gates[site.name], rank=(1, 2), floating=False, what="gates [B, channels]")
        g = g[None] if g.dim() == 1 else g
        if g.shape[1] != site.width or g.shape[0] not in (1, rows):
            rule = "gates of a layer are [B, channels]"
            raise InvalidArgument(rule, argument=f"{site.name}: [{rows}, {site.width}]", given=tuple(g.shape))
        parts.append(g.expand(rows, -1))
    return plan, torch.cat(parts, dim=1)


def _run(model: nn.Module, images: Tensor, plan: SitePlan, gates: Tensor | None, batch_size: int | None) -> Tensor:
    parts = []
    for rows in row_slices(images, batch_size):
        with GatedNetwork(model, plan, images[rows], cache=False) as network, torch.no_grad():
            parts.append(network.logits(None if gates is None else gates[rows].to(images)))
    return torch.cat(parts)
