"""A budget in milliseconds: time the real network, and look for the operation budget that gives the asked speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from convsmith.compression.methods.method import Method
from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.subject import Subject
from convsmith.compression.runtimes import runnable
from convsmith.errors import InvalidArgument

#: plans tried by the bisection over operation budgets
STEPS = 7
#: the least share of the budget that is near enough
NEAR = 0.94


def time_side_by_side(
    models: Sequence[Callable[[Tensor], Tensor]], images: Tensor, *, seconds: float = 0.3, least: int = 5
) -> list[list[float]]:
    """Time several networks in turn on the same images: [model][repeat] seconds per call.

    The networks take turns call by call, so a change of the machine's speed meets all of them. Three calls each warm
    up; then rounds until every network had ``least`` calls and about ``seconds`` have gone to each.
    """
    with torch.no_grad():
        for _ in range(3):
            for model in models:
                model(images)
        took: list[list[float]] = [[] for _ in models]
        end = time.perf_counter() + seconds * len(models)
        while time.perf_counter() < end or len(took[-1]) < least:
            for model, row in zip(models, took, strict=True):
                _synchronise(images)
                start = time.perf_counter()
                model(images)
                _synchronise(images)
                row.append(time.perf_counter() - start)
    return took


def _synchronise(images: Tensor) -> None:
    if images.is_cuda:
        torch.cuda.synchronize(images.device)


def plan_for_latency(subject: Subject, method: Method, budget: Budget, *, runtime: str = "torch") -> Plan:
    """Return the plan with the largest operation budget whose measured latency share is at most ``budget.keep``.

    Latency: the least of many calls in ``runtime`` at the example's batch of at most 8, against the original in the
    same run, at torch's present thread count. Bisection over operation budgets, each plan carried out and timed whole,
    until one takes between `NEAR` and all of the budget, `STEPS` plans at most; layers are scanned once for all.

    Raises:
        InvalidArgument: no plan tried is fast enough; the error names the best that was measured.
    """
    subject, images = replace(subject, timed=True), subject.seen.example[:8]
    base = runnable(subject.model, images, runtime)
    low, high = 0.0, 1.0
    best: Plan | None = None
    fastest = float("inf")
    if budget.keep == 1:
        return replace(method.plan(subject, Budget("macs", 1.0)), budget=budget)
    for step in range(STEPS):
        keep = (low + high) / 2
        subject.tell(step, STEPS, f"keep {keep:.2f} of MACs")
        try:
            plan = method.plan(subject, Budget("macs", keep))
        except InvalidArgument:
            low = keep
            continue
        share = _share(base, subject, method, plan, images, runtime)
        fastest = min(fastest, share)
        note = f"keeps {plan.kept('macs'):.2f} of MACs; measured latency in {runtime} {share:.2f} of the original's"
        if share <= budget.keep:
            choices = (replace(plan.choices[0], note=note), *plan.choices[1:]) if plan.choices else ()
            best = replace(plan, budget=budget, choices=choices)
            low = keep
            if share >= NEAR * budget.keep:
                break
        else:
            high = keep
    if best is None:
        given = (
            f"the fastest plan tried takes {fastest:.2f} of the original's time" if fastest < 1e9 else "no plan exists"
        )
        raise InvalidArgument(
            "no plan of this method is that fast on this machine",
            argument=f"keep_latency={budget.keep}",
            given=given,
            hint="ask for more time, or use another method (prune-filters usually gains the most)",
        )
    return best


def _share(
    base: Callable[[Tensor], Any],
    subject: Subject,
    method: Method,
    plan: Plan,
    images: Tensor,
    runtime: str,
) -> float:
    """Return the time of the planned network in units of ``base``, the original in the same runtime."""
    smaller = runnable(method.apply(subject.copy(), plan).model, images, runtime)
    old, new = time_side_by_side([base, smaller], images)
    return min(new) / min(old)
