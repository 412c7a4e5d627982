"""``transfer/selection``: what is lost when the step is chosen without target labels, on the cells of other studies."""

from __future__ import annotations

import json
from statistics import fmean
from typing import Any

from convsmith.adaptation.evaluation.validators import GUARD
from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from experiments.studies.contract import Outcome, Study, Verdict, result_path, run_study, study
from experiments.studies.digit_transfer import VALIDATORS, last_accuracy, selected_accuracy
from experiments.studies.statistics import Interval, interval
from experiments.studies.style_transfer import DATA

CHOICES = (*VALIDATORS, "source_accuracy", "last step")
#: a choice keeps what the oracle finds if it loses less than this on average, points
KEPT = 2.0
Runs = dict[tuple[str, ...], dict[int, Any]]


@study(
    "transfer/selection",
    claim="A choice of the step without target labels keeps what the oracle, which reads them, would find.",
    source="Salvador et al., A Reproducible and Realistic Evaluation of Partial Domain Adaptation, TMLR 2023",
    rule="Points of target accuracy lost against the best step of the same run, mean over all runs of every method of "
    f"transfer/styles except source-only and ablations, by validator behind the guard ({GUARD} of source-only's "
    f"source accuracy). Reproduced if the 95 % interval over seeds of the best validator lies below {KEPT:.0f} points, "
    f"partly if its mean does, else not reproduced. The digit runs of transfer/methods stand beside it.",
    data=DATA,
)
def selection(running: Study) -> Outcome:
    """Read the cells of transfer/styles (it runs first if it has not), of the stamps and the digits where they are."""
    assert running.results is not None
    styles = run_study(
        "transfer/styles",
        quick=running.quick,
        seeds=len(running.seeds),
        device=running.device,
        results=running.results,
        progress=running.progress,
    )
    lost = {"emoji styles": losses(grouped(styles["cells"]))}
    for name, other in (("stamps", "transfer/stamps"), ("digits", "transfer/methods")):
        file = result_path(running.results, other, running.quick, running.device)
        if file.is_file():
            lost[name] = losses(grouped(json.loads(file.read_text())["cells"]))
    running.cell("lost", lambda: {name: {c: v.mean for c, v in each.items()} for name, each in lost.items()})
    verdict, best = decide(lost["emoji styles"])
    table = Table(
        ["step chosen by", *(f"points lost, {name}" for name in lost)],
        [[choice, *(str(each[choice]) for each in lost.values())] for choice in CHOICES],
        "Against the best step of the same run, mean over methods, directions and target sets, 95 % interval over "
        "seeds.",
    )
    own = lost["emoji styles"]
    figure = Figure(
        bars({c: (own[c].mean, own[c].low, own[c].high) for c in CHOICES}, xlabel="points lost against the oracle"),
        "Target accuracy lost by choosing the step without target labels; lines are 95 % intervals over seeds.",
        "Bars of the points lost by each validator.",
    )
    summary = f"least lost by {best}: {own[best]} points; InfoMax {own['infomax']}, the last step {own['last step']}."
    return Outcome(verdict, summary, [table], [figure])


def grouped(cells: dict[str, Any]) -> Runs:
    """Return cells by (direction, target, method) and seed; ablations are left out."""
    found: Runs = {}
    for key, cell in cells.items():
        direction, spec, method, seed = key.split("|")
        if "curve" in cell and " " not in method:
            found.setdefault((direction, spec, method), {})[int(seed)] = cell
    return found


def losses(runs: Runs) -> dict[str, Interval]:
    """Return, by choice, the points lost against the best step of each run, averaged within a seed."""
    found: dict[str, dict[int, list[float]]] = {choice: {} for choice in CHOICES}
    for (direction, spec, method), own in runs.items():
        if method == "source-only":
            continue
        for seed, cell in own.items():
            best = 100 * max(float(row["accuracy"]) for row in cell["curve"])
            base = runs[direction, spec, "source-only"][seed]
            for choice, by_seed in found.items():
                if choice == "last step":
                    reached = last_accuracy(cell)
                elif choice == "source_accuracy":
                    reached = 100 * float(max(cell["curve"], key=lambda row: row["source_accuracy"])["accuracy"])
                else:
                    reached = selected_accuracy(cell, base, choice)
                by_seed.setdefault(seed, []).append(best - reached)
    return {choice: interval([fmean(values) for values in by_seed.values()]) for choice, by_seed in found.items()}


def decide(lost: dict[str, Interval]) -> tuple[Verdict, str]:
    """Apply the rule; return the verdict and the validator that loses least."""
    best = min((c for c in lost if c != "last step"), key=lambda c: lost[c].mean)
    found = lost[best]
    if found.n > 1 and found.high < KEPT:
        return "reproduced", best
    return ("partly" if found.mean < KEPT else "not reproduced"), best
