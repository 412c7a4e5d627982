"""``transfer/convergence``: how the target error falls during training, and how steadily."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from statistics import mean
from typing import Any

from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_transfer import DATA, DIRECTIONS, run
from experiments.studies.statistics import interval, paired_difference

METHODS = ("source-only", "dann", "san")
SET = "first-5"


@study(
    "transfer/convergence",
    claim="SAN's target error falls faster and more steadily than that of plain adversarial adaptation.",
    source="Cao et al., Selective Adversarial Networks, CVPR 2018, section 4.3, test error against iterations",
    rule="Five of ten classes, error measured every 80 of 400 steps, paired over seeds, SAN against DANN. Faster: "
    "the mean error over the second half of training is lower. Steadier: the mean absolute change of the error "
    "between neighbouring measurements of the second half is smaller. Reproduced if both differences exclude 0 "
    "in both directions; partly if at least one of the four does in SAN's favour and none against it; else not "
    "reproduced.",
    data=DATA,
)
def convergence(running: Study) -> Outcome:
    """Measure error curves."""
    total = len(DIRECTIONS) * len(running.seeds) * len(METHODS)
    curves: dict[tuple[str, str], list[list[float]]] = {}
    steps: list[int] = []
    for seed in running.seeds:
        for direction in DIRECTIONS:
            for method in METHODS:
                key = f"{direction}|{SET}|{method}|{seed}"
                cell = running.cell(key, partial(run, direction, SET, method, seed), total)
                steps = cell["steps"]
                curves.setdefault((direction, method), []).append([100 * (1 - r["accuracy"]) for r in cell["curve"]])
    rows: list[list[Any]] = []
    checks = []
    for direction in DIRECTIONS:
        level = {m: [mean(c[len(c) // 2 :]) for c in curves[direction, m]] for m in METHODS}
        jumps = {m: [unsteadiness(c[len(c) // 2 :]) for c in curves[direction, m]] for m in METHODS}
        rows += [[direction, m, str(interval(level[m])), str(interval(jumps[m]))] for m in METHODS]
        checks += [paired_difference(measured["dann"], measured["san"]) for measured in (level, jumps)]
        rows.append([direction, "DANN less SAN", str(checks[-2]), str(checks[-1])])
    for_it, against = sum(c.low > 0 for c in checks), sum(c.high < 0 for c in checks)
    verdict: Verdict = "reproduced" if for_it == 4 else "partly" if for_it and not against else "not reproduced"
    summary = f"{for_it} of 4 differences favour SAN with an interval above 0, {against} favour DANN."
    columns = ["direction", "method", "mean error of the second half, %", "mean change between measurements, points"]
    table = Table(columns, rows, "Mean and 95 % interval over seeds.")
    return Outcome(verdict, summary, [table], [_figure(curves, d, steps) for d in DIRECTIONS])


def unsteadiness(errors: list[float]) -> float:
    """Return the mean absolute change between neighbours."""
    return mean(abs(a - b) for a, b in pairwise(errors))


def _figure(curves: dict[tuple[str, str], list[list[float]]], direction: str, steps: list[int]) -> Figure:
    series = {}
    for method in METHODS:
        points = [interval(list(at)) for at in zip(*curves[direction, method], strict=True)]
        series[method] = Series(steps, [p.mean for p in points], [p.low for p in points], [p.high for p in points])
    return Figure(
        svg=lines(series, xlabel="training step", ylabel="target error, %"),
        caption=f"{direction}, target digits 0-4: target error during training, mean and 95 % interval over seeds.",
        alt=f"Three curves of target error over 400 steps, {direction}.",
    )
