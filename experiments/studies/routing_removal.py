"""``routing/removal``: what the accuracy loses without the most critical nodes, and without others."""

from __future__ import annotations

from functools import partial
from typing import Any

from convsmith.interpretation import ablate, find_routes, score_units
from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_routes import DATA, KINDS, held_out, network
from experiments.studies.statistics import interval

FRACTIONS = (0.0, 0.005, 0.01, 0.02, 0.05)
#: name -> (how nodes are scored, order of removal); the first one decides
ARMS: dict[str, tuple[dict[str, Any], str]] = {
    "routes, light penalty": ({"mode": "paper", "gamma": 0.002}, "critical"),
    "routes, published": ({"mode": "paper", "gamma": 0.05}, "critical"),
    "routes, converged": ({"mode": "converged", "gamma": 0.05}, "critical"),
    "gradient x activation": ({"method": "gradient-times-activation"}, "critical"),
    "integrated gates": ({"method": "integrated"}, "critical"),
    "activation": ({"method": "activation"}, "critical"),
    "random": ({"method": "random"}, "random"),
    "least critical": ({"mode": "paper", "gamma": 0.002}, "least"),
}


def measure(kind: str, arm: str, seed: int, count: int, device: str) -> list[float]:
    """Return accuracy in percent at every fraction."""
    how, order = ARMS[arm]
    model = network(kind, seed, device)
    x, y, _ = held_out(seed, count, device)
    scores = score_units(model, x, seed=seed, **how) if "method" in how else find_routes(model, x, **how)
    return [100 * value for value in ablate(model, x, y, scores, FRACTIONS, order=order, seed=seed)]


@study(
    "routing/removal",
    claim="Removing 1 % of the most critical nodes costs tens of points (reported: about 70 % to under 40 %), "
    "random nodes cost little.",
    source="Wang et al., Critical Data Routing Paths, CVPR 2018, section 4.1 (numbers as reported by an article)",
    rule="Nodes removed image by image, ranked by gates of the published solver at gamma 0.002 (a light penalty, "
    "chosen on other networks: a heavy one closes gates before they can be ranked). A network counts fully if "
    "at 1 % the upper end of the interval of the accuracy is at most half of the mean full accuracy and random removal "
    "costs less than 5 points; it counts half if critical nodes cost at least 20 points more than random ones. "
    "Reproduced if both networks count fully, partly if both count at least half or one fully, else not reproduced.",
    data=DATA,
)
def removal(running: Study) -> Outcome:
    """Remove nodes by eight orders on both networks."""
    count = 60 if running.quick else 150
    total = len(KINDS) * len(ARMS) * len(running.seeds)
    found: dict[tuple[str, str], list[list[float]]] = {}
    for kind in KINDS:
        for seed in running.seeds:
            for arm in ARMS:
                work = partial(measure, kind, arm, seed, count, running.device)
                found.setdefault((kind, arm), []).append(running.cell(f"{kind}|{arm}|{seed}", work, total))
    rows, figures, marks, words = [], [], [], []
    at = FRACTIONS.index(0.01)
    for kind in KINDS:
        curves = {}
        for arm in ARMS:
            values = [interval([cell[f] for cell in found[kind, arm]]) for f in range(len(FRACTIONS))]
            rows.append([kind, arm, *(str(v) for v in values)])
            x = [100 * f for f in FRACTIONS]
            curves[arm] = Series(x, [v.mean for v in values], [v.low for v in values], [v.high for v in values])
        first = next(iter(ARMS))
        full = interval([cell[0] for cell in found[kind, first]]).mean
        critical = interval([cell[at] for cell in found[kind, first]])
        random = interval([cell[at] for cell in found[kind, "random"]])
        marks.append(
            2 if critical.high <= full / 2 and full - random.mean < 5 else int(random.mean - critical.mean >= 20)
        )
        words.append(f"{kind}: {full:.1f} % to {critical} % at 1 %, random {random} %")
        figures.append(
            Figure(
                lines(curves, xlabel="nodes removed, %", ylabel="accuracy, %"),
                f"{kind} network: accuracy after removal, mean and 95 % interval over seeds.",
                "Falling curves of accuracy for eight orders of removal.",
            )
        )
    verdict: Verdict = "reproduced" if min(marks) == 2 else "partly" if sum(marks) >= 2 else "not reproduced"
    table = Table(["network", "order", *(f"{100 * f:g} %" for f in FRACTIONS)], rows, "Accuracy, % by removed nodes.")
    return Outcome(verdict, "; ".join(words) + ".", [table], figures)
