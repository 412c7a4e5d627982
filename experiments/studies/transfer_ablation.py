"""``transfer/ablation``: SAN with one of its three mechanisms taken away."""

from __future__ import annotations

from functools import partial
from typing import Any

from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_transfer import DATA, DIRECTIONS, last_accuracy, run
from experiments.studies.statistics import interval, paired_difference

#: without instance weights an image counts 1/K for each of the K = 10 discriminators, so that the loss keeps its size
ARMS: dict[str, dict[str, Any]] = {
    "SAN": {},
    "without class weights": {"class_weight_on": "none"},
    "without instance weights": {"instance_weight": "none", "adversarial": 0.1},
    "without both weights": {"class_weight_on": "none", "instance_weight": "none", "adversarial": 0.1},
    "without entropy": {"entropy": 0.0},
}
SET = "first-5"


@study(
    "transfer/ablation",
    claim="Both levels of weights and the entropy term contribute: without the weights, or without the entropy, SAN "
    "is less accurate.",
    source="Cao et al., Selective Adversarial Networks, CVPR 2018, Table 1 (SAN-selective, SAN-entropy)",
    rule="Five of ten classes, both directions, last step. A mechanism contributes in a direction if the paired "
    "difference SAN less its ablation lies above 0. Reproduced if the entropy and the weights taken away "
    "together contribute in both directions; partly if one of them does in at least one; else not reproduced.",
    data=DATA,
)
def ablation(running: Study) -> Outcome:
    """Run SAN and its ablations on the first five digits."""
    total = len(DIRECTIONS) * len(running.seeds) * len(ARMS)
    accuracy: dict[tuple[str, str], list[float]] = {}
    for seed in running.seeds:
        for direction in DIRECTIONS:
            for arm, settings in ARMS.items():
                key = f"{direction}|{SET}|{arm}|{seed}"
                cell = running.cell(key, partial(run, direction, SET, "san", seed, **settings), total)
                accuracy.setdefault((direction, arm), []).append(last_accuracy(cell))
    rows, held = [], []
    for direction in DIRECTIONS:
        for arm in ARMS:
            lost = paired_difference(accuracy[direction, "SAN"], accuracy[direction, arm])
            found = interval(accuracy[direction, arm])
            rows.append([direction, arm, str(found), "" if arm == "SAN" else str(lost)])
            if arm in ("without both weights", "without entropy"):
                held.append(lost.low > 0)
    verdict: Verdict = "reproduced" if all(held) else "partly" if any(held) else "not reproduced"
    table = Table(
        ["direction", "arm", "target accuracy, %", "SAN less this arm, points"], rows, "Mean and 95 % interval."
    )
    summary = f"{sum(held)} of 4 checks hold (weights and entropy, in two directions)."
    return Outcome(verdict, summary, [table], [_figure(accuracy, d) for d in DIRECTIONS])


def _figure(accuracy: dict[tuple[str, str], list[float]], direction: str) -> Figure:
    found = {arm: interval(accuracy[direction, arm]) for arm in ARMS}
    return Figure(
        svg=bars({arm: (f.mean, f.low, f.high) for arm, f in found.items()}, xlabel="target accuracy, %"),
        caption=f"{direction}, target digits 0-4: SAN and its ablations, mean and 95 % interval over seeds.",
        alt=f"Bars of target accuracy for SAN and four ablations, {direction}.",
    )
