"""``redundancy/family``: the interleaved family and its relatives at equal parameters and at equal MACs."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from convsmith.models.igcv1 import igcv1_net
from convsmith.models.igcv2 import igcv2_cifar
from convsmith.models.igcv3 import igcv3_net
from convsmith.models.lean_controls import mobilenet_v1_net, xception_igc_net
from convsmith.models.merge_run import dmrnet
from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import DATA, latency, nearest, train, updates
from experiments.studies.statistics import interval, paired_difference

BUDGETS = {"params": 25_000, "macs": 1_500_000}
ARMS = ("regular", "IGCV1", "IGCV2", "IGCV3", "Merge-and-Run", "Xception", "MobileNetV1")
INTERLEAVED = ("IGCV1", "IGCV2", "IGCV3")
#: widths an arm can take
STEPS = {"IGCV1": 2, "IGCV2": 4, "IGCV3": 4, "MobileNetV1": 8}


@study(
    "redundancy/family",
    claim="At equal parameters and at equal MACs interleaved networks are more accurate than regular convolutions.",
    source="IGCV1, table 2; IGCV2, tables 3 and 4; IGCV3, tables 1 and 2; Merge-and-Run, table 3",
    rule="For each of IGCV1, IGCV2, IGCV3 and each budget: does it beat the regular network, 95 % interval of the "
    "paired difference above 0? Reproduced if at least five of the six do; partly if at least two do; else not "
    "reproduced.",
    data=DATA,
)
def family(running: Study) -> Outcome:
    """Train seven kinds of network at 25,000 parameters, and at 1.5 million MACs."""
    kinds = ("params",) if running.quick else tuple(BUDGETS)
    steps = updates(running.quick)
    total = len(kinds) * len(ARMS) * len(running.seeds)
    cells: dict[tuple[str, str], list[Any]] = {}
    for kind in kinds:
        for seed in running.seeds:
            for arm in ARMS:
                work = partial(train, partial(build, arm, kind), seed, steps, running.device)
                cell = running.cell(f"{kind}|{arm}|{seed}", work, total)
                cells.setdefault((kind, arm), []).append(cell)
    accuracy = {key: [cell["accuracy"] for cell in values] for key, values in cells.items()}
    verdict, checks, held = decide(accuracy)
    tables, figures = [], []
    for kind in kinds:
        rows: list[list[Any]] = []
        for arm in ARMS:
            first = cells[kind, arm][0]
            seconds = running.cell(f"{kind}|{arm}|latency", partial(latency, partial(build, arm, kind)))
            rows.append([arm, first["params"], first["macs"], 1000 * seconds, str(interval(accuracy[kind, arm]))])
        equal = "parameters" if kind == "params" else "MACs"
        tables.append(
            Table(
                ["network", "parameters", "MACs", "latency, ms (batch 1)", "test accuracy, %"],
                rows,
                f"At equal {equal}: {steps} updates, {len(running.seeds)} seeds.",
            )
        )
        points = [interval(accuracy[kind, arm]) for arm in ARMS]
        figures.append(
            Figure(
                bars(
                    {arm: (p.mean, p.low, p.high) for arm, p in zip(ARMS, points, strict=True)},
                    xlabel="test accuracy, %",
                ),
                f"Accuracy at equal {equal}; lines are 95 % intervals over seeds.",
                f"Seven bars of accuracy at equal {equal}.",
            )
        )
    words = "; ".join(f"{arm} {interval(accuracy[kinds[0], arm])}" for arm in ("regular", *INTERLEAVED))
    return Outcome(verdict, f"At equal parameters: {words}; {held} comparisons hold.", [*tables, checks], figures)


def decide(accuracy: dict[tuple[str, str], list[float]]) -> tuple[Verdict, Table, int]:
    """Apply the rule to accuracies by (budget, arm)."""
    rows, held, asked = [], 0, 0
    for kind in sorted({kind for kind, _ in accuracy}, reverse=True):
        for arm in INTERLEAVED:
            found = paired_difference(accuracy[kind, arm], accuracy[kind, "regular"])
            ok = found.low > 0 and found.n > 1
            held, asked = held + ok, asked + 1
            rows.append([kind, f"{arm} less regular", str(found), "holds" if ok else "does not hold"])
    table = Table(["equal", "difference, points", "mean and 95 % interval", "rule"], rows, "The rule's checks.")
    verdict: Verdict = "not reproduced"
    if held >= 5 or (asked == 3 and held == 3):
        verdict = "reproduced"
    elif held >= 2:
        verdict = "partly"
    return verdict, table, held


def build(arm: str, kind: str) -> nn.Module:
    """Build an arm at a budget."""
    make = partial(network, arm)
    return make(nearest(make, BUDGETS[kind], kind, STEPS.get(arm, 1)))


def network(arm: str, width: int) -> nn.Module:
    """Build an arm with ``width`` channels in its first stage (a multiple of what the arm needs)."""
    small: dict[str, Any] = {"num_classes": 10, "in_chans": 1}
    if arm == "regular":
        return igcv1_net(8, None, width=width, **small)
    if arm == "IGCV1":
        return igcv1_net(8, width // 2, 2, **small)
    if arm == "IGCV2":
        return igcv2_cifar(8, width, 4, **small)
    if arm == "IGCV3":
        rows = ((4, width, 2, 1), (4, 2 * width, 2, 2), (4, 4 * width, 2, 2))
        return igcv3_net(rows, stem_channels=width, stem_stride=1, last_channels=0, **small)
    if arm == "Merge-and-Run":
        return dmrnet_of(width)
    if arm == "Xception":
        return xception_igc_net(8, width, **small)
    plan = ((width, 2, 1), (2 * width, 2, 2), (4 * width, 2, 2))
    return mobilenet_v1_net(plan=plan, stem_stride=1, **small)


def dmrnet_of(channels: int) -> nn.Module:
    """Build the 8-layer merge-and-run network with any number of channels a stream."""
    return dmrnet(8, base=channels, num_classes=10, in_chans=1)
