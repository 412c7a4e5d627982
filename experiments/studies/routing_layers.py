"""``routing/layers``: gates scattered in shallow layers, grouped by class in deep ones."""

from __future__ import annotations

from dataclasses import asdict
from functools import partial
from typing import Any

from convsmith.interpretation import find_routes, layer_statistics
from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_routes import DATA, KINDS, held_out, network
from experiments.studies.statistics import interval, paired_difference


def measure(kind: str, seed: int, count: int, device: str) -> list[dict[str, Any]]:
    """Return the statistics of every layer; gates of the published schedule."""
    x, y, _ = held_out(seed, count, device)
    routes = find_routes(network(kind, seed, device), x, mode="paper", labels=y)
    return [asdict(layer) for layer in layer_statistics(routes, routes.prediction, seed=seed)]


@study(
    "routing/layers",
    claim="Gates are dispersed in shallow layers and clustered by class in deep ones.",
    source="Wang et al., Critical Data Routing Paths, CVPR 2018, section 4.2",
    rule="Two checks on each of two networks, paired over seeds: the last layer's separability (leave-one-out nearest "
    "class mean) lies above the first layer's, and its dispersion (distance to the class mean over distance to the "
    "overall mean) below. Reproduced if all four differences have the right sign with their whole interval, partly if "
    "at least two, else not reproduced.",
    data=DATA,
)
def layers(running: Study) -> Outcome:
    """Measure every layer of both networks."""
    count = 100 if running.quick else 250
    found: dict[str, list[list[dict[str, Any]]]] = {}
    for kind in KINDS:
        for seed in running.seeds:
            work = partial(measure, kind, seed, count, running.device)
            found.setdefault(kind, []).append(running.cell(f"{kind}|{seed}", work, len(KINDS) * len(running.seeds)))
    rows: list[list[Any]] = []
    figures, held, words = [], [], []
    for kind, cells in found.items():
        depth = list(range(1, len(cells[0]) + 1))
        columns = {k: [interval([c[d - 1][k] for c in cells]) for d in depth] for k in _SHOWN}
        rows += [[kind, d, *(str(columns[k][d - 1]) for k in _SHOWN)] for d in depth]
        for key, sign in (("separability", 1), ("dispersion", -1)):
            change = paired_difference([c[-1][key] for c in cells], [c[0][key] for c in cells])
            held.append(change.low > 0 if sign > 0 else change.high < 0)
            words.append(f"{kind}, {key}: last less first {change}")
        figures.append(
            Figure(
                lines(
                    {name: _series(depth, columns[key]) for key, name in _CURVES.items()},
                    xlabel="layer",
                    ylabel="share or ratio",
                ),
                f"{kind} network by layer, mean and 95 % interval over seeds.",
                "Separability by layer with its null, and dispersion.",
            )
        )
    verdict: Verdict = "reproduced" if all(held) else "partly" if sum(held) >= 2 else "not reproduced"
    table = Table(["network", "layer", *_SHOWN.values()], rows, f"{count} test images a seed.")
    return Outcome(verdict, "; ".join(words) + ".", [table], figures)


_SHOWN = {
    "critical_share": "critical share",
    "dispersion": "dispersion",
    "separability": "separability",
    "null_separability": "separability, shuffled",
    "null_high": "shuffled, 95th percentile",
}
_CURVES = {"separability": "separability", "null_separability": "shuffled labels", "dispersion": "dispersion"}


def _series(depth: list[int], values: list[Any]) -> Series:
    return Series(depth, [v.mean for v in values], [v.low for v in values], [v.high for v in values])
