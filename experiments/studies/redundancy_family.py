"""``redundancy/family``: the interleaved family and its relatives at equal parameters and at equal MACs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from experiments.studies.lean_training import DATA, DIGITS, Recipe, latency, nearest, train, updates
from experiments.studies.statistics import interval, paired_difference

ARMS = ("regular", "IGCV1", "IGCV2", "IGCV3", "Merge-and-Run", "Xception", "MobileNetV1")
INTERLEAVED = ("IGCV1", "IGCV2", "IGCV3")
#: widths an arm can take; IGCV1 has two members a partition unless the arm's name says how many
STEPS = {"IGCV1": 2, "M=4": 4, "M=8": 8, "IGCV2": 4, "IGCV3": 4, "MobileNetV1": 8}


@dataclass(frozen=True)
class Budget:
    """What is equal (``params`` or ``macs``), how much of it, who is compared at it, on how many of the seeds.

    ``longer`` times the updates; ``fold`` in place of the study's (`build`).
    """

    kind: str
    amount: int
    arms: tuple[str, ...] = ARMS
    seeds: int | None = None
    longer: int = 1
    fold: int | None = None


BUDGETS = {"params": Budget("params", 25_000), "macs": Budget("macs", 1_500_000)}
Cells = dict[tuple[str, str], list[Any]]


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
    budgets = {name: BUDGETS[name] for name in (("params",) if running.quick else BUDGETS)}
    cells, tables, figures = compared(running, budgets, updates(running.quick))
    accuracy = {key: [cell["accuracy"] for cell in values] for key, values in cells.items()}
    verdict, checks, held = decide(accuracy)
    words = "; ".join(f"{arm} {interval(accuracy['params', arm])}" for arm in ("regular", *INTERLEAVED))
    return Outcome(verdict, f"At equal parameters: {words}; {held} comparisons hold.", [*tables, checks], figures)


def compared(
    running: Study, budgets: Mapping[str, Budget], steps: int, recipe: Recipe = DIGITS, fold: int = 1
) -> tuple[Cells, list[Table], list[Figure]]:
    """Train every arm of every budget; return the cells by (budget, arm), and a table and a figure for each budget."""
    total = sum(len(b.arms) * (1 + len(running.seeds[: b.seeds])) for b in budgets.values())
    cells: Cells = {}
    tables, figures = [], []
    for name, budget in budgets.items():
        seeds = running.seeds[: budget.seeds]
        own = budget.fold or fold
        builders = {arm: partial(build, arm, budget, recipe, own) for arm in budget.arms}
        for seed in seeds:
            for arm, builder in builders.items():
                work = partial(train, builder, seed, steps * budget.longer, running.device, recipe)
                cells.setdefault((name, arm), []).append(running.cell(f"{name}|{arm}|{seed}", work, total))
        rows: list[list[Any]] = []
        shown = {}
        for arm, builder in builders.items():
            first = cells[name, arm][0]
            seconds = running.cell(f"{name}|{arm}|latency", partial(latency, builder, shape=recipe.shape), total)
            found = interval([cell["accuracy"] for cell in cells[name, arm]])
            rows.append([arm, first["params"], first["macs"], 1000 * seconds, str(found)])
            shown[arm] = (found.mean, found.low, found.high)
        equal = {"params": "equal parameters", "macs": "equal MACs"}.get(name, name)
        tables.append(
            Table(
                ["network", "parameters", "MACs", "latency, ms (batch 1)", "test accuracy, %"],
                rows,
                f"At {equal}: {steps * budget.longer} updates, {len(seeds)} seed{'s' * (len(seeds) > 1)}.",
            )
        )
        if len(shown) > 1:
            figures.append(
                Figure(
                    bars(shown, xlabel="test accuracy, %"),
                    f"Accuracy at {equal}; lines are 95 % intervals over seeds.",
                    f"Bars of accuracy at {equal}, one for each of {len(shown)} networks.",
                )
            )
    return cells, tables, figures


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


def build(arm: str, budget: Budget, recipe: Recipe = DIGITS, fold: int = 1) -> nn.Module:
    """Build an arm at a budget; ``fold`` x ``fold`` pixels become the channels of one position before its stem."""
    make = partial(network, arm, fold=fold)
    return make(nearest(make, budget.amount, budget.kind, STEPS.get(arm, 1), recipe.shape))


def network(arm: str, width: int, fold: int = 1) -> nn.Module:
    """Build an arm with ``width`` channels in its first stage (a multiple of what the arm needs)."""
    model = _network(arm, width, fold * fold)
    return model if fold == 1 else nn.Sequential(nn.PixelUnshuffle(fold), model)


def _network(arm: str, width: int, in_chans: int) -> nn.Module:
    small: dict[str, Any] = {"num_classes": 10, "in_chans": in_chans}
    if arm == "regular":
        return igcv1_net(8, None, width=width, **small)
    if arm == "IGCV1" or arm.startswith("M="):
        members = 2 if arm == "IGCV1" else int(arm[2:])
        return igcv1_net(8, width // members, members, **small)
    if arm == "IGCV2":
        return igcv2_cifar(8, width, 4, **small)
    if arm == "IGCV3":
        rows = ((4, width, 2, 1), (4, 2 * width, 2, 2), (4, 4 * width, 2, 2))
        return igcv3_net(rows, stem_channels=width, stem_stride=1, last_channels=0, **small)
    if arm == "Merge-and-Run":
        return dmrnet(8, base=width, **small)
    if arm == "Xception":
        return xception_igc_net(8, width, **small)
    plan = ((width, 2, 1), (2 * width, 2, 2), (4 * width, 2, 2))
    return mobilenet_v1_net(plan=plan, stem_stride=1, **small)
