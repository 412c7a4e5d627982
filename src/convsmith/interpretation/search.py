"""Gamma chosen by what one wants: a sparsity, a whole path of sparsities, and how much a start decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, one_of
from convsmith.errors import InvalidArgument
from convsmith.interpretation.find import find_routes, prepare, solve
from convsmith.interpretation.routes import Routes
from convsmith.interpretation.settings import settings_with
from convsmith.interpretation.sites import SiteRule, plan_sites


@checked
def routes_at_sparsity(
    model: nn.Module,
    images: Tensor,
    target: float,
    *,
    rounds: int = 8,
    low: float = 1e-4,
    high: float = 1.0,
    sites: str | SiteRule = "auto",
    layers: Sequence[str] | None = None,
    batch_size: int | None = None,
    **settings: Any,
) -> tuple[Routes, Tensor]:
    """Find for every image the gamma whose share of critical nodes comes closest to ``target``; return routes, gammas.

    Bisection on log gamma between ``low`` and ``high``, image by image, whole batches at once: ``rounds`` searches.
    ``settings`` as in `RouteSettings`. The share of nodes need not be monotone in gamma (the problem is not convex), so
    the closest of all rounds is returned, not the last.

    Examples:
        >>> routes, gammas = routes_at_sparsity(model, images, 0.5, rounds=2, steps=5)
    """
    if not 0 < target < 1:
        raise InvalidArgument("a share of nodes lies between 0 and 1", argument="target", given=target)
    if not 0 < low < high or rounds < 1:
        raise InvalidArgument("bisection needs 0 < low < high and a round", given=f"{low}, {high}, {rounds} rounds")
    if "gamma" in settings:
        raise InvalidArgument("gamma is what is searched", argument="gamma", given=settings["gamma"], hint="low, high")
    chosen = settings_with(None, **settings)
    model, images = prepare(model, images)
    plan = plan_sites(model, images, sites, layers)
    bottom, top = torch.full((len(images),), low).log(), torch.full((len(images),), high).log()
    found, distance = [], []
    for _ in range(rounds):
        gamma = ((bottom + top) / 2).exp()
        found.append(solve(model, images, plan, chosen, batch_size, gammas=gamma))
        share, middle = found[-1].sparsity().cpu(), gamma.log()
        distance.append((share - target).abs())
        bottom, top = torch.where(share > target, middle, bottom), torch.where(share > target, top, middle)
    nearest = torch.stack(distance).argmin(0)
    best = Routes.concatenate(found)[nearest * len(images) + torch.arange(len(images))]
    return best, best.gamma.cpu()


@checked
def regularisation_path(model: nn.Module, images: Tensor, gammas: Sequence[float], **settings: Any) -> list[Routes]:
    """Return the routes at each of ``gammas``; ``settings`` as in `find_routes`.

    Examples:
        >>> path = regularisation_path(model, images, [0.01, 0.1], steps=5)
    """
    return [find_routes(model, images, gamma=gamma, **settings) for gamma in gammas]


@checked
def initialisation_overlap(
    model: nn.Module, images: Tensor, *, seeds: Sequence[int] = (0, 1), **settings: Any
) -> Tensor:
    """Return the Jaccard overlap [S, B] of the critical nodes from ones with those from uniform starts, by seed.

    Low overlap means that the route is one of several; report it beside any claim about single nodes.

    Examples:
        >>> overlap = initialisation_overlap(model, images, steps=5)
    """
    if not seeds:
        raise InvalidArgument("an overlap needs a seed of other starts", argument="seeds", given="none")
    reference = find_routes(model, images, **{**settings, "init": "ones"}).vector() > 0
    rows = []
    for seed in seeds:
        other = find_routes(model, images, **{**settings, "init": "uniform", "seed": seed}).vector() > 0
        rows.append(jaccard(reference, other))
    return torch.stack(rows)


@checked
def jaccard(a: Tensor, b: Tensor) -> Tensor:
    """Row by row |a and b| / |a or b| of bool tensors [..., C]; two empty sets overlap completely.

    Examples:
        >>> jaccard(torch.tensor([True, True, False]), torch.tensor([True, False, False]))
        tensor(0.5000)
    """
    return _share((a & b).sum(-1), (a | b).sum(-1))


def alike(a: Tensor, b: Tensor, measure: str) -> Tensor:
    """Return how alike every row of ``a`` [A, C] is to every row of ``b`` [B, C], [A, B].

    ``measure``: ``"cosine"`` of the gates, or ``"jaccard"`` of the positive ones.
    """
    one_of("measure", measure, ("cosine", "jaccard"))
    if measure == "cosine":
        return nn.functional.normalize(a, dim=1) @ nn.functional.normalize(b, dim=1).T
    x, y = (a > 0).float(), (b > 0).float()
    both = x @ y.T
    return _share(both, x.sum(1)[:, None] + y.sum(1) - both)


def _share(both: Tensor, union: Tensor) -> Tensor:
    return torch.where(union > 0, both / union.clamp(min=1), 1.0)
