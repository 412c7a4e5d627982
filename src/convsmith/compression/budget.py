"""Spend a budget where it hurts least: a sensitivity scan per layer, then an exact choice over all layers.

The scan puts each candidate into the network, alone, and measures how far the network's output moves on the example
images (no labels). Between scanned candidates the damage follows the method's own loss (discarded energy), scaled by
what was measured. The choice over layers is the multiple-choice knapsack: minimise the sum of damages subject to the
sum of costs, solved by dynamic programming on a cost grid. The sum over layers is the usual first-order assumption that
damages add; the honest number is the accuracy measured afterwards. Where a method's options are so coarse that the best
choice leaves more than `SLACK` of the budget unused, the rest is spent on finer options of the layers that changed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from convsmith.compression.cost import cost
from convsmith.compression.method import output_error
from convsmith.compression.plan import Budget, Choice, Plan
from convsmith.compression.survey import Layer, Survey, evaluating, replace
from convsmith.errors import InvalidArgument

Progress = Callable[[int, int, str], None]
#: cells of the knapsack's cost grid; costs are rounded up, so a plan of n layers may leave n/GRID of the budget unused
GRID = 16384
#: images used by the scan, at most
SCAN_IMAGES = 32
#: share of the budget that a plan may leave unused before finer options are looked for
SLACK = 0.03
#: finer options whose damage is measured, per round
FINER = 6


@dataclass(frozen=True)
class Option:
    """One thing that can be done to a layer. ``loss``: the method's own measure, 0 (exact) to 1 (all lost)."""

    setting: dict[str, Any]
    macs: int
    params: int
    loss: float


#: (layer, its option, "macs" or "params", least and most that may be added to the option's cost) -> dearer options
#: of the layer that keep more; those that add the least first if there are any, others otherwise
Refine = Callable[[Layer, Option, str, float, float], list[Option]]


def scan(
    model: nn.Module,
    seen: Survey,
    layer: Layer,
    options: Sequence[Option],
    build: Callable[[Layer, Option], nn.Module],
    *,
    points: int = 4,
) -> list[float]:
    """Return the damage of every option of ``layer``: `output_error` with only this layer changed.

    At most ``points`` options are really tried, spread over the list; the others are interpolated: damage divided by
    loss is taken as piecewise linear in the loss. ``model`` is changed and put back.
    """
    images = seen.example[:SCAN_IMAGES]
    tried = sorted({round(i * (len(options) - 1) / max(points - 1, 1)) for i in range(points)})
    ratios: list[tuple[float, float]] = []
    exact: dict[int, float] = {}
    with evaluating(model), torch.no_grad():
        for i in tried:
            new = build(layer, options[i])
            replace(model, layer.name, new)
            try:
                damage = output_error(seen.output[:SCAN_IMAGES], model(images))
            finally:
                _put_back(model, new, layer.module)
            exact[i] = damage if math.isfinite(damage) else 1e9
            if options[i].loss > 0:
                ratios.append((options[i].loss, exact[i] / options[i].loss))
    ratios.sort()
    if not ratios:
        return [exact.get(i, 0.0) for i in range(len(options))]
    xs, ys = [r[0] for r in ratios], [r[1] for r in ratios]
    return [exact[i] if i in exact else float(np.interp(o.loss, xs, ys)) * o.loss for i, o in enumerate(options)]


def _put_back(model: nn.Module, new: nn.Module, old: nn.Module) -> None:
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is new:
                parent._modules[key] = old


def allocate(costs: Sequence[Sequence[int]], damages: Sequence[Sequence[float]], limit: float) -> list[int] | None:
    """Choose one option per layer: least total damage with total cost at most ``limit``; None if nothing fits.

    Exact up to the rounding of costs to ``limit / GRID`` (upwards, so the limit always holds).
    """
    if not costs:
        return [] if limit >= 0 else None
    if limit <= 0:
        return None
    unit = limit / GRID
    best = np.full(GRID + 1, np.inf)
    best[0] = 0.0
    picks = np.full((len(costs), GRID + 1), -1, dtype=np.int32)
    for row, (prices, harms) in enumerate(zip(costs, damages, strict=True)):
        nxt = np.full(GRID + 1, np.inf)
        for i, (price, harm) in enumerate(zip(prices, harms, strict=True)):
            cells = math.ceil(price / unit - 1e-9)
            if cells > GRID:
                continue
            reached = best[: GRID + 1 - cells] + harm
            better = reached < nxt[cells:]
            nxt[cells:][better] = reached[better]
            picks[row, cells:][better] = i
        best = nxt
    if not np.isfinite(best).any():
        return None
    # of equally harmless choices take the most expensive: it leaves the least of the budget unused
    cell = int(np.flatnonzero(best <= best.min() * (1 + 1e-12))[-1])
    chosen = []
    for row in range(len(costs) - 1, -1, -1):
        pick = int(picks[row, cell])
        chosen.append(pick)
        cell -= math.ceil(costs[row][pick] / unit - 1e-9)
    return chosen[::-1]


def plan_layers(
    name: str,
    model: nn.Module,
    seen: Survey,
    table: Sequence[tuple[Layer, Sequence[Option]]],
    build: Callable[[Layer, Option], nn.Module],
    budget: Budget,
    *,
    refused: Mapping[str, str],
    refine: Refine | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Scan every layer of ``table`` and choose one option each so that the whole network obeys ``budget``.

    Leaving a layer as it is is always an option, with damage 0. ``refine`` is asked where the choice leaves more than
    `SLACK` of the budget unused.

    Raises:
        InvalidArgument: even the smallest options do not reach the budget.
    """
    whole = cost(model, tuple(seen.example.shape[1:]))
    total = whole.macs if budget.kind == "macs" else whole.params
    every: list[list[Option]] = []
    damages: list[list[float]] = []
    for done, (layer, options) in enumerate(table):
        if progress is not None:
            progress(done, len(table), f"scan {layer.name}")
        damages.append([0.0, *(scan(model, seen, layer, options, build) if options else [])])
        every.append([Option({}, layer.macs, layer.params, 0.0), *options])
    prices = [[_price(o, budget.kind) for o in options] for options in every]
    fixed = total - sum(row[0] for row in prices)
    if budget.keep == 1:
        chosen: list[int] | None = [0] * len(every)
    else:
        chosen = allocate(prices, damages, budget.keep * total - fixed)
    if chosen is None:
        least = (fixed + sum(min(row) for row in prices)) / total
        raise InvalidArgument(
            f"{name} cannot bring this network to the budget",
            asked=f"keep {budget.keep:.3g} of {budget.kind}",
            given=f"at the least it keeps {least:.3g}; layers left alone: {len(refused)}",
            mend=f"ask for {math.ceil(least * 100 + 1e-9) / 100:.2f} or more, or chain another method",
        )
    picked = [
        (layer, every[i][pick], damages[i][pick])
        for i, ((layer, _), pick) in enumerate(zip(table, chosen, strict=True))
    ]
    if refine is not None and budget.keep < 1:
        _spend_rest(model, seen, picked, build, refine, budget, fixed, total)
    return assemble(name, whole.macs, whole.params, picked, budget=budget, refused=refused)


def _spend_rest(
    model: nn.Module,
    seen: Survey,
    picked: list[tuple[Layer, Option, float]],
    build: Callable[[Layer, Option], nn.Module],
    refine: Refine,
    budget: Budget,
    fixed: int,
    total: int,
) -> None:
    """Replace chosen options by finer, dearer ones until the plan is within `SLACK` of the budget, in place.

    In every round the finer options that promise the largest fall of damage (by their own loss) are measured, and the
    best one that comes near enough is taken, or the best one if none does.
    """
    limit = budget.keep * total
    while True:
        now = fixed + sum(_price(option, budget.kind) for _, option, _ in picked)
        if now >= (1 - SLACK) * limit:
            return
        found: list[tuple[bool, float, int, Option]] = []
        for i, (layer, option, harm) in enumerate(picked):
            if not option.setting:
                continue
            for finer in refine(layer, option, budget.kind, (1 - SLACK) * limit - now, limit - now):
                added = _price(finer, budget.kind) - _price(option, budget.kind)
                promised = harm * (1 - finer.loss / option.loss) if option.loss > 0 else 0.0
                found.append((now + added < (1 - SLACK) * limit, -promised, i, finer))
        if not found:
            return
        found.sort(key=lambda item: item[:3])
        best: tuple[float, int, Option, float] | None = None
        for _, _, i, finer in [item for item in found if item[0] == found[0][0]][:FINER]:
            damage = scan(model, seen, picked[i][0], [finer], build)[0]
            if best is None or damage - picked[i][2] < best[0]:
                best = (damage - picked[i][2], i, finer, damage)
        assert best is not None
        picked[best[1]] = (picked[best[1]][0], best[2], best[3])


def _price(option: Option, kind: str) -> int:
    return option.macs if kind == "macs" else option.params


def assemble(
    name: str,
    macs: int,
    params: int,
    picked: Sequence[tuple[Layer, Option, float | None]],
    *,
    refused: Mapping[str, str],
    budget: Budget | None = None,
) -> Plan:
    """Assemble a `Plan` from one option per layer and the whole network's counts."""
    choices = tuple(
        Choice(layer.name, dict(o.setting), (layer.macs, o.macs), (layer.params, o.params), harm)
        for layer, o, harm in picked
    )
    return Plan(
        name,
        choices,
        (macs, macs + sum(c.macs[1] - c.macs[0] for c in choices)),
        (params, params + sum(c.params[1] - c.params[0] for c in choices)),
        budget,
        dict(refused),
    )
