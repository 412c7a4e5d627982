"""``pooling/layers``: what the pre-normalisation and the post-compensation of iSQRT-COV are good for."""

from __future__ import annotations

from typing import Any

from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import DATA
from experiments.studies.second_order_training import accuracies, train, updates
from experiments.studies.statistics import interval, paired_difference

ARMS: dict[str, dict[str, Any]] = {
    "trace": {},
    "Frobenius": {"normalization": "frobenius"},
    "no pre-normalisation": {"normalization": None, "compensate": False},
    "no post-compensation": {"compensate": False},
}
LOSS = 5.0


@study(
    "pooling/layers",
    claim="Without pre-normalisation the iteration fails; without post-compensation accuracy falls.",
    source="iSQRT-COV (Li et al., CVPR 2018), the experiments on pre-normalisation and post-compensation",
    rule="Reproduced if without pre-normalisation every run stops being finite or the loss of accuracy is at least 5 "
    "points with a 95 % interval of the paired difference above 0, and without post-compensation the loss has an "
    "interval above 0; partly if one of the two holds; else not reproduced.",
    data=DATA,
)
def layers(running: Study) -> Outcome:
    """Train the network with both, with the Frobenius norm, and without either."""
    steps = updates(running.quick)

    def work(arm: str, seed: int) -> dict[str, Any]:
        return train("isqrt-cov", seed, steps, running.device, options=ARMS[arm])

    cells = running.arms(ARMS, work)
    found = accuracies(cells)
    failed = {arm: sum("failed" in cell for cell in values) for arm, values in cells.items()}
    verdict, checks = decide(found, failed["no pre-normalisation"])
    shown = {arm: interval(values) for arm, values in found.items()}
    table = Table(
        ["layers", "test accuracy, %", "runs that stopped being finite"],
        [[arm, str(value), failed[arm]] for arm, value in shown.items()],
        f"{steps} updates of {len(running.seeds)} seeds; a run that stopped counts as chance, 10 %.",
    )
    figure = Figure(
        bars({arm: (v.mean, v.low, v.high) for arm, v in shown.items()}, xlabel="test accuracy, %"),
        "Accuracy with and without the layers around the iteration; lines are 95 % intervals over seeds.",
        "Horizontal bars of accuracy, one per variant.",
    )
    summary = (
        f"Trace {shown['trace']} %, Frobenius {shown['Frobenius']} %; without pre-normalisation "
        f"{failed['no pre-normalisation']} of {len(running.seeds)} runs stopped being finite "
        f"({shown['no pre-normalisation']} %); without post-compensation {shown['no post-compensation']} %."
    )
    return Outcome(verdict, summary, [table, checks], [figure])


def decide(accuracy: dict[str, list[float]], failed: int) -> tuple[Verdict, Table]:
    """Apply the rule to accuracies by arm and to the number of runs without pre-normalisation that failed."""
    loss = {arm: paired_difference(accuracy["trace"], values) for arm, values in accuracy.items() if arm != "trace"}
    table = Table(
        ["difference, points", "mean and 95 % interval"],
        [[f"trace less {arm}", str(found)] for arm, found in loss.items()],
        "The rule's checks.",
    )
    enough = len(accuracy["trace"]) >= 2
    without = loss["no pre-normalisation"]
    first = failed == len(accuracy["trace"]) or (enough and without.low > 0 and without.mean >= LOSS)
    second = enough and loss["no post-compensation"].low > 0
    if first and second:
        return "reproduced", table
    return ("partly" if first or second else "not reproduced"), table
