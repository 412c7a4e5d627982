"""``pooling/power``: second-order against average pooling, and which exponent of the covariance is best."""

from __future__ import annotations

from typing import Any

from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import DATA
from experiments.studies.second_order_training import accuracies, train, updates
from experiments.studies.statistics import interval, paired_difference

ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    "average": ("average", {}),
    "exponent 0.25": ("mpn-cov", {"exponent": 0.25}),
    "exponent 0.5": ("mpn-cov", {"exponent": 0.5}),
    "exponent 0.75": ("mpn-cov", {"exponent": 0.75}),
    "exponent 1": ("mpn-cov", {"exponent": 1.0}),
    "logarithm": ("deep-o2p", {"center": True}),
}
HALF = "exponent 0.5"


@study(
    "pooling/power",
    claim="Second-order pooling beats average pooling on the same network; exponent 0.5 is best among 0.25, 0.5, "
    "0.75, 1 and the logarithm.",
    source="MPN-COV (Li et al., ICCV 2017), the experiments on the exponent",
    rule="Reproduced if exponent 0.5 beats average pooling and exponent 1 with 95 % intervals of the paired "
    "differences above 0 and no other arm beats it so; partly if it beats average pooling so; else not reproduced.",
    data=DATA,
)
def power(running: Study) -> Outcome:
    """Train the network with average pooling, four powers of the covariance and its logarithm."""
    steps = updates(running.quick)

    def work(arm: str, seed: int) -> dict[str, Any]:
        pooling, options = ARMS[arm]
        return train(pooling, seed, steps, running.device, options=options)

    cells = running.arms(ARMS, work)
    found = accuracies(cells)
    verdict, checks = decide(found)
    shown = {arm: interval(values) for arm, values in found.items()}
    table = Table(
        ["pooling", "test accuracy, %"],
        [[arm, str(value)] for arm, value in shown.items()],
        f"{steps} updates of {len(running.seeds)} seeds, the mean and its 95 % interval.",
    )
    figure = Figure(
        bars({arm: (v.mean, v.low, v.high) for arm, v in shown.items()}, xlabel="test accuracy, %"),
        "Accuracy by pooling; lines are 95 % intervals over seeds.",
        "Horizontal bars of accuracy, one per pooling.",
    )
    best = max(shown, key=lambda arm: shown[arm].mean)
    summary = (
        f"Exponent 0.5 {shown[HALF]} %, average pooling {shown['average']} %, plain covariance "
        f"{shown['exponent 1']} %; best: {best} with {shown[best]} %."
    )
    return Outcome(verdict, summary, [table, checks], [figure])


def decide(accuracy: dict[str, list[float]]) -> tuple[Verdict, Table]:
    """Apply the rule to accuracies by arm."""
    against = {arm: paired_difference(accuracy[HALF], values) for arm, values in accuracy.items() if arm != HALF}
    rows = [[f"exponent 0.5 less {arm}", str(found)] for arm, found in against.items()]
    table = Table(["difference, points", "mean and 95 % interval"], rows, "The rule's checks.")
    if len(accuracy[HALF]) < 2 or against["average"].low <= 0:
        return "not reproduced", table
    unbeaten = all(found.high >= 0 for found in against.values())
    return ("reproduced" if against["exponent 1"].low > 0 and unbeaten else "partly"), table
