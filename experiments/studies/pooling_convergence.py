"""``pooling/convergence``: how many updates each pooling needs for average pooling's final accuracy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import DATA
from experiments.studies.second_order_training import train, updates
from experiments.studies.statistics import interval, paired_difference

ARMS = ("average", "isqrt-cov", "mpn-cov")
Curve = Sequence[Sequence[float]]


@study(
    "pooling/convergence",
    claim="Second-order networks reach average pooling's final error in fewer epochs.",
    source="iSQRT-COV (Li et al., CVPR 2018), the experiments on convergence",
    rule="Updates until the validation accuracy first reaches the one average pooling ends with. Reproduced if "
    "average pooling's own number less iSQRT-COV's has a 95 % interval above 0; partly if its mean is above 0; else "
    "not reproduced. A run that never gets there counts as one evaluation beyond the end.",
    data=DATA,
)
def convergence(running: Study) -> Outcome:
    """Train three poolings with the same recipe and evaluate them twelve times on the way."""
    steps = updates(running.quick)
    every = steps // 12 if not running.quick else steps // 10

    def work(arm: str, seed: int) -> dict[str, Any]:
        return train(arm, seed, steps, running.device, evaluate_every=every)

    cells = running.arms(ARMS, work)
    curves: dict[str, list[Curve]] = {arm: [cell["curve"] for cell in values] for arm, values in cells.items()}
    needed = reached(curves)
    verdict, checks = decide(needed)
    table = Table(
        ["pooling", "updates to average pooling's final accuracy", "final validation accuracy, %", "test accuracy, %"],
        [
            [
                arm,
                str(interval(needed[arm])),
                str(interval([curve[-1][1] for curve in curves[arm]])),
                str(interval([cell["accuracy"] for cell in cells[arm]])),
            ]
            for arm in ARMS
        ],
        f"{steps} updates of {len(running.seeds)} seeds, evaluated every {every} updates.",
    )
    shown = {}
    for arm, many in curves.items():
        points = [interval([curve[k][1] for curve in many]) for k in range(len(many[0]))]
        at = [row[0] for row in many[0]]
        shown[arm] = Series(at, [p.mean for p in points], [p.low for p in points], [p.high for p in points])
    figure = Figure(
        lines(shown, xlabel="updates", ylabel="validation accuracy, %"),
        "Validation accuracy while training; bands are 95 % intervals over seeds.",
        "Three rising curves of validation accuracy against updates.",
    )
    summary = (
        f"Updates to average pooling's final accuracy: iSQRT-COV {interval(needed['isqrt-cov'])}, "
        f"average pooling itself {interval(needed['average'])} of {steps}."
    )
    return Outcome(verdict, summary, [table, checks], [figure])


def reached(curves: dict[str, list[Curve]]) -> dict[str, list[float]]:
    """Return, per arm and seed, the first evaluated update at or above average pooling's final accuracy."""
    found: dict[str, list[float]] = {arm: [] for arm in curves}
    for position, reference in enumerate(curves["average"]):
        never = 2 * reference[-1][0] - reference[-2][0]
        for arm, many in curves.items():
            found[arm].append(next((row[0] for row in many[position] if row[1] >= reference[-1][1]), never))
    return found


def decide(needed: dict[str, list[float]]) -> tuple[Verdict, Table]:
    """Apply the rule to updates needed, by arm and seed."""
    saved = {arm: paired_difference(needed["average"], needed[arm]) for arm in needed if arm != "average"}
    table = Table(
        ["updates saved", "mean and 95 % interval"],
        [[f"average less {arm}", str(found)] for arm, found in saved.items()],
        "The rule's checks.",
    )
    found = saved["isqrt-cov"]
    if found.n >= 2 and found.low > 0:
        return "reproduced", table
    return ("partly" if found.mean > 0 else "not reproduced"), table
