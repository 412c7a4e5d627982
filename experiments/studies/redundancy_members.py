"""``redundancy/members``: at equal parameters, how many channels a primary partition should have."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import DATA, nearest, train, updates
from experiments.studies.redundancy_family import network
from experiments.studies.statistics import interval, paired_difference

BUDGET = 20_000
MEMBERS = (1, 2, 4, 8)
ARMS = (*(f"M={m}" for m in MEMBERS), "dense")


@study(
    "redundancy/members",
    claim="At equal parameters accuracy peaks near M = 2 members a partition; Xception (M = 1) is an extreme and not "
    "the best.",
    source="IGCV1, section 5.2 and figure 4 (width and accuracy against M at a fixed number of parameters)",
    rule="Reproduced if M=2 beats M=1 and the dense network with 95 % intervals of the paired differences above 0 and "
    "no other M beats it so; partly if M=2 beats the dense network so and M=1 does not beat M=2 so; else not "
    "reproduced.",
    data=DATA,
)
def members(running: Study) -> Outcome:
    """Train plain 8-layer networks of about 20,000 parameters, M = 1, 2, 4, 8 and dense."""
    arms = ("M=1", "M=2", "dense") if running.quick else ARMS
    steps = updates(running.quick)

    def work(arm: str, seed: int) -> dict[str, Any]:
        return train(partial(build, arm), seed, steps, running.device)

    cells = running.arms(arms, work)
    accuracy = {arm: [cell["accuracy"] for cell in values] for arm, values in cells.items()}
    verdict, checks = decide(accuracy)
    rows: list[list[Any]] = [
        [arm, width(arm), cells[arm][0]["params"], cells[arm][0]["macs"], str(interval(accuracy[arm]))] for arm in arms
    ]
    table = Table(
        ["network", "channels of the first stage", "parameters", "MACs", "test accuracy, %"],
        rows,
        f"{steps} updates of {len(running.seeds)} seeds; M doubles where a stage doubles its width, M=1 stays.",
    )
    points = [interval(accuracy[arm]) for arm in arms if arm != "dense"]
    dense = interval(accuracy["dense"])
    at = [int(arm[2:]) for arm in arms if arm != "dense"]
    figure = Figure(
        lines(
            {
                "interleaved": Series(at, [p.mean for p in points], [p.low for p in points], [p.high for p in points]),
                "dense": Series(at, [dense.mean] * len(at), [dense.low] * len(at), [dense.high] * len(at)),
            },
            xlabel="members M of a primary partition",
            ylabel="test accuracy, %",
        ),
        "Accuracy against the members of a partition at equal parameters; bands are 95 % intervals over seeds.",
        "Two curves of accuracy against M, interleaved and dense.",
    )
    best = max(accuracy, key=lambda arm: sum(accuracy[arm]))
    summary = f"Best: {best} with {interval(accuracy[best])} %; M=2 {interval(accuracy['M=2'])}, dense {dense}."
    return Outcome(verdict, summary, [table, checks], [figure])


def decide(accuracy: dict[str, list[float]]) -> tuple[Verdict, Table]:
    """Apply the rule to accuracies by arm."""
    against = {arm: paired_difference(accuracy["M=2"], values) for arm, values in accuracy.items() if arm != "M=2"}
    rows = [[f"M=2 less {arm}", str(found)] for arm, found in against.items()]
    table = Table(["difference, points", "mean and 95 % interval"], rows, "The rule's checks.")
    wins = against["M=1"].low > 0 and against["dense"].low > 0
    unbeaten = all(found.high >= 0 for found in against.values())
    if len(accuracy["M=2"]) < 2:
        return "not reproduced", table
    if wins and unbeaten:
        return "reproduced", table
    if against["dense"].low > 0 and against["M=1"].high >= 0:
        return "partly", table
    return "not reproduced", table


def width(arm: str) -> int:
    """Return the first stage's channels that bring an arm to the budget."""
    step = 1 if arm in ("dense", "M=1") else int(arm[2:])
    return nearest(partial(_network, arm), BUDGET, step=step)


def build(arm: str) -> nn.Module:
    """Build an arm at the budget."""
    return _network(arm, width(arm))


def _network(arm: str, channels: int) -> nn.Module:
    return network({"dense": "regular", "M=1": "Xception"}.get(arm, arm), channels)


def same_budget() -> bool:
    """Tell whether all arms are within 10 % of the budget."""
    with torch.device("meta"):
        sizes = [sum(p.numel() for p in build(arm).parameters()) for arm in ARMS]
    return all(abs(size - BUDGET) <= 0.1 * BUDGET for size in sizes)
