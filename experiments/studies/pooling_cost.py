"""``pooling/cost``: time and memory of every pooling, forward and backward."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from convsmith.pooling import POOLINGS, available
from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from experiments.benchmarks.memory import saved_bytes
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.statistics import interval, paired_difference

CASES = ((64, 7, 16), (64, 14, 16), (256, 7, 16), (256, 14, 16), (256, 14, 1))
QUICK = ((64, 7, 8), (256, 7, 4))


@study(
    "pooling/cost",
    claim="The iterative square root (iSQRT-COV) trains faster than the eigenvalue decomposition (MPN-COV).",
    source="iSQRT-COV (Li et al., CVPR 2018), the comparison of times (measured there on GPUs)",
    rule="Reproduced if MPN-COV's time less iSQRT-COV's, forward and backward, has a 95 % interval above 0 "
    "over repeated inputs for every size; partly if for some size; else not reproduced.",
    data="random feature maps after ReLU, one draw per seed: time and memory do not depend on what the images show",
)
def cost(running: Study) -> Outcome:
    """Time every pooling by channels d, side of the map and batch."""
    cases = QUICK if running.quick else CASES
    arms = available()
    total = len(cases) * len(arms) * len(running.seeds)
    cells: dict[tuple[str, tuple[int, int, int]], list[Any]] = {}
    for seed in running.seeds:
        for case in cases:
            for arm in arms:
                work = partial(measure, arm, case, seed, running.device)
                cells.setdefault((arm, case), []).append(running.cell(f"{arm}|{named(case)}|{seed}", work, total))
    both = {key: [1000 * (c["forward"] + c["backward"]) for c in values] for key, values in cells.items()}
    verdict, checks = decide({named(case): (both["mpn-cov", case], both["isqrt-cov", case]) for case in cases})
    rows = [
        [
            arm,
            named(case),
            str(interval([1000 * c["forward"] for c in cells[arm, case]])),
            str(interval([1000 * c["backward"] for c in cells[arm, case]])),
            round(cells[arm, case][0]["saved"] / 2**20, 2),
        ]
        for case in cases
        for arm in arms
    ]
    table = Table(
        ["pooling", "size", "forward, ms", "backward, ms", "kept for the backward pass, MiB"],
        rows,
        f"Median of 3 calls for each of {len(running.seeds)} inputs; the mean over inputs and its 95 % interval.",
    )
    last = cases[-1] if running.quick else CASES[3]
    shown = {arm: interval(both[arm, last]) for arm in arms}
    figure = Figure(
        bars(
            {arm: (v.mean, max(v.low, 0.0), v.high) for arm, v in shown.items()},
            xlabel=f"forward and backward, ms ({named(last)})",
        ),
        "Time of every pooling; lines are 95 % intervals over inputs.",
        "Horizontal bars of time, one per pooling.",
    )
    summary = f"{named(last)}: iSQRT-COV {shown['isqrt-cov']} ms, MPN-COV {shown['mpn-cov']} ms, average "
    return Outcome(verdict, summary + f"{shown['average']} ms.", [table, checks], [figure])


def named(case: tuple[int, int, int]) -> str:
    """Return a case as words."""
    return f"d={case[0]}, {case[1]} x {case[1]}, batch {case[2]}"


def measure(arm: str, case: tuple[int, int, int], seed: int, device: str) -> dict[str, float]:
    """Return the median seconds forward and backward, and the bytes kept in between."""
    d, side, batch = case
    x = torch.randn(batch, d, side, side, generator=torch.Generator().manual_seed(seed)).relu().to(device)
    x.requires_grad_()
    layer = POOLINGS.entry(arm).value(d, dim=None).to(device)
    taken: list[tuple[float, float]] = []
    for _ in range(4):
        marks = [time.perf_counter()]
        out = layer(x)
        for step in (lambda: None, out.sum().backward):
            step()
            if x.is_cuda:
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
        taken.append((marks[1] - marks[0], marks[2] - marks[1]))
    forward, backward = (sorted(times)[1] for times in zip(*taken[1:], strict=True))
    return {"forward": forward, "backward": backward, "saved": saved_bytes(partial(layer, x))}


def decide(times: dict[str, tuple[list[float], list[float]]]) -> tuple[Verdict, Table]:
    """Apply the rule to the times of MPN-COV and iSQRT-COV by case."""
    saved = {case: paired_difference(exact, iterated) for case, (exact, iterated) in times.items()}
    table = Table(
        ["MPN-COV less iSQRT-COV, ms", "mean and 95 % interval"],
        [[case, str(found)] for case, found in saved.items()],
        "The rule's checks.",
    )
    faster = [found.n >= 2 and found.low > 0 for found in saved.values()]
    return ("reproduced" if all(faster) else "partly" if any(faster) else "not reproduced"), table
