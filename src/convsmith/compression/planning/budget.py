"""Spend a budget where it hurts least: a sensitivity scan per layer, then an exact choice over all layers.

The scan puts each candidate into the network, alone, and measures how far the network's output moves on the example
images (no labels). Between scanned candidates the sensitivity follows the method's own loss (discarded energy), scaled
by what was measured. The choice over layers is the multiple-choice knapsack: minimise the sum of sensitivities subject
to the sum of costs, solved by dynamic programming on a cost grid; that sensitivities add is an assumption. Where a
method's options are so coarse that the best choice leaves more than 1 % of the budget unused, finer ones are added and
the choice is made again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from dataclasses import replace as replace_fields
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from convsmith.arguments import checked
from convsmith.compression.methods.method import METHODS
from convsmith.compression.planning.plan import Budget, Choice, Plan, named_reasons
from convsmith.compression.planning.prefix import Prefix
from convsmith.compression.planning.replacement import put, replace
from convsmith.compression.planning.subject import Subject
from convsmith.errors import InvalidArgument
from convsmith.inspection.layers import Layer

#: cells of the knapsack's cost grid; costs are rounded up, so a plan of n layers may leave n/GRID of the budget unused
GRID = 16384
#: options of a layer that the scan really tries
TRIED = 4
#: images used by the scan, at most
SCAN_IMAGES = 32
#: and at least, however large the network
FEWEST_SCANNED = 8
#: multiply-accumulates of a whole scan, where that leaves more than the fewest images: minutes on two cores
SCAN_MACS = 1.5e12
#: shares of the budget that a plan may leave unused: above the first, finer options are added and the choice is made
#: again, with the least of these that can be reached
SLACKS = (0.01, 0.02, 0.03, 0.05)


@checked
def budget_of(
    methods: Sequence[str],
    *,
    keep_macs: float | None = None,
    keep_params: float | None = None,
    keep_latency: float | None = None,
) -> tuple[Budget | None, int]:
    """Return the one budget given, and the place in the chain of the first method that can obey it (None, -1: none).

    Raises:
        InvalidArgument: several budgets, a share outside (0, 1], or no method of the chain changes what is asked.

    Examples:
        >>> budget_of(["low-rank", "int8"], keep_macs=0.5)[1]
        0
    """
    given = {"macs": keep_macs, "params": keep_params, "latency": keep_latency}
    asked = {kind: keep for kind, keep in given.items() if keep is not None}
    if not asked:
        return None, -1
    if len(asked) > 1:
        raise InvalidArgument("give one budget", given=", ".join(f"keep_{k}={v}" for k, v in asked.items()))
    ((kind, keep),) = asked.items()
    budget, needed = Budget(kind, keep), "macs" if kind == "latency" else kind
    for i, name in enumerate(methods):
        if needed in METHODS[name].budgets:
            return budget, i
    able = [entry.name for entry in METHODS if needed in entry.value.budgets]
    raise InvalidArgument(
        f"{', '.join(methods)} does not change the number of {needed}",
        argument=f"keep_{kind}={keep}",
        hint=f"chain it behind one of {', '.join(able)}, or leave the budget away",
    )


@dataclass(frozen=True)
class Option:
    """One thing that can be done to a layer. ``loss``: the method's own measure, 0 (exact) to 1 (all lost)."""

    setting: dict[str, Any]
    macs: int
    params: int
    loss: float


def scan(
    prefix: Prefix, layer: Layer, options: Sequence[Option], build: Callable[[Layer, Option], nn.Module]
) -> list[float]:
    """Return the sensitivity of every option of ``layer``: `output_error` with only this layer changed.

    At most `TRIED` options are really tried, spread over the list; the others are interpolated: sensitivity divided by
    loss is taken as piecewise linear in the loss. The model of ``prefix`` is changed and put back.
    """
    prefix.before([layer.module])
    ratios: list[tuple[float, float]] = []
    exact: dict[int, float] = {}
    for i in sorted({round(i * (len(options) - 1) / (TRIED - 1)) for i in range(TRIED)}):
        new = build(layer, options[i])
        replace(prefix.model, layer.name, new)
        try:
            exact[i] = prefix.error()
        finally:
            put(prefix.model, new, layer.module)
        if options[i].loss > 0:
            ratios.append((options[i].loss, exact[i] / options[i].loss))
    if not ratios:
        return [exact.get(i, 0.0) for i in range(len(options))]
    xs, ys = zip(*sorted(ratios), strict=True)
    return [exact[i] if i in exact else float(np.interp(o.loss, xs, ys)) * o.loss for i, o in enumerate(options)]


def scan_images(macs: int) -> int:
    """Return how many images a scan uses whose trials cost ``macs`` on one image."""
    return max(FEWEST_SCANNED, min(SCAN_IMAGES, int(SCAN_MACS // max(macs, 1))))


def allocate(
    costs: Sequence[Sequence[int]], sensitivities: Sequence[Sequence[float]], limit: float, least: float = 0.0
) -> list[int] | None:
    """Choose one option per layer: least total sensitivity with total cost at most ``limit``; None if nothing fits.

    ``least``: also spend at least that much. Exact up to the rounding of costs to ``limit / GRID`` (upwards, so both
    bounds always hold; a choice nearer to ``least`` than one cell per layer is not found).
    """
    if not costs:
        return [] if limit >= 0 else None
    if limit <= 0:
        return None
    unit = limit / GRID
    best = np.full(GRID + 1, np.inf)
    best[0] = 0.0
    picks = np.full((len(costs), GRID + 1), -1, dtype=np.int32)
    for row, (prices, harms) in enumerate(zip(costs, sensitivities, strict=True)):
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
    if least > 0:
        best[: min(math.ceil(least / unit) + len(costs), GRID + 1)] = np.inf
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
    subject: Subject,
    table: Sequence[tuple[Layer, Sequence[Option]]],
    build: Callable[[Layer, Option], nn.Module],
    budget: Budget,
    *,
    skipped: Mapping[str, str],
    finer: Callable[[Layer, Sequence[Option]], list[Option]] | None = None,
) -> Plan:
    """Scan every layer of ``table`` and choose one option each so that the whole network obeys ``budget``.

    Leaving a layer as it is is always an option, with sensitivity 0. ``finer`` gives more options of a layer, used
    where the choice would leave more than 1 % of the budget unused; their sensitivity is interpolated.

    Raises:
        InvalidArgument: even the smallest options do not reach the budget.
    """
    whole = subject.cost
    total: int = getattr(whole, budget.kind)
    every: list[list[Option]] = []
    sensitivities: list[list[float]] = []
    prefix = Prefix(subject.model, subject.seen, scan_images(whole.macs * TRIED * len(table)))
    for done, (layer, options) in enumerate(table):
        subject.tell(done, len(table), f"scan {layer.name}")
        key = (layer.name, tuple(str(option.setting) for option in options))
        harms = subject.once(key, partial(scan, prefix, layer, options, build))
        sensitivities.append([0.0, *harms])
        every.append([Option({}, layer.macs, layer.params, 0.0), *options])
    prices = [[getattr(o, budget.kind) for o in options] for options in every]
    fixed = total - sum(row[0] for row in prices)
    limit = budget.keep * total - fixed
    least = limit - SLACKS[0] * budget.keep * total
    chosen = [0] * len(every) if budget.keep == 1 else allocate(prices, sensitivities, limit)
    if chosen is None:
        least = (fixed + sum(min(row) for row in prices)) / total
        raise unreachable(name, budget, least, skipped)
    if finer is not None and sum(row[pick] for row, pick in zip(prices, chosen, strict=True)) < least:
        for i, (layer, options) in enumerate(table):
            more = finer(layer, options)
            every[i] += more
            sensitivities[i] += _interpolated(every[i][: len(sensitivities[i])], sensitivities[i], more)
        prices = [[getattr(o, budget.kind) for o in options] for options in every]
        nearer = (allocate(prices, sensitivities, limit, limit - slack * budget.keep * total) for slack in SLACKS)
        chosen = next((choice for choice in nearer if choice is not None), chosen)
    kept = sum(row[pick] for row, pick in zip(prices, chosen, strict=True))
    nearest: list[int] = []
    if kept < least:
        above = (allocate(prices, sensitivities, share * limit, limit) for share in (1.02, 1.05, 1.1, 1.25, 1.5))
        picks = next((choice for choice in above if choice is not None), None)
        nearest = [kept] if picks is None else [kept, sum(row[i] for row, i in zip(prices, picks, strict=True))]
    picked = [
        (layer, every[i][pick], sensitivities[i][pick])
        for i, ((layer, _), pick) in enumerate(zip(table, chosen, strict=True))
    ]
    made = assemble(name, subject, picked, budget=budget, skipped=skipped)
    return replace_fields(made, nearest=tuple((fixed + price) / total for price in nearest))


def unreachable(name: str, budget: Budget, least: float, skipped: Mapping[str, str], more: str = "") -> InvalidArgument:
    """Return the error of a method that keeps the share ``least`` at the least; ``more``: another way out."""
    return InvalidArgument(
        f"{name} cannot bring this network to the budget",
        argument=f"keep {budget.keep:.3g} of {budget.kind}",
        given=f"at the least it keeps {least:.3g}; left alone: {named_reasons(skipped) or 'none'}",
        hint=f"ask for {math.ceil(least * 100 + 1e-9) / 100:.2f} or more,{more} or chain another method",
    )


def _interpolated(known: Sequence[Option], sensitivities: Sequence[float], options: Sequence[Option]) -> list[float]:
    """Return the sensitivity of ``options``: piecewise linear in the loss through the known ones."""
    xs, ys = zip(*sorted(zip((o.loss for o in known), sensitivities, strict=True)), strict=True)
    return [float(np.interp(o.loss, xs, ys)) for o in options]


def assemble(
    name: str,
    subject: Subject,
    picked: Sequence[tuple[Layer, Option, float | None]],
    *,
    skipped: Mapping[str, str],
    budget: Budget | None = None,
) -> Plan:
    """Assemble a `Plan` from one option per layer and the whole network's counts."""
    macs, params = subject.cost.macs, subject.cost.params
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
        dict(skipped),
    )
