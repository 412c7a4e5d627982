"""``transfer/target-classes``: what DANN and SAN gain over source-only as the target holds fewer classes."""

from __future__ import annotations

from functools import partial
from typing import Any

from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_transfer import DATA, DIRECTIONS, last_accuracy, run
from experiments.studies.statistics import Interval, interval, paired_difference

SIZES = (10, 8, 6, 5, 4, 3, 2)
METHODS = ("source-only", "dann", "san")
#: intervals over fewer seeds than this say nothing
SEEDS = 10


@study(
    "transfer/target-classes",
    claim="The fewer classes the target holds, the more DANN loses and the more SAN wins.",
    source="Cao et al., Selective Adversarial Networks, CVPR 2018, section 4.3, accuracy against the number of classes",
    rule="In each direction three things are checked on paired differences over seeds at the last step: DANN's gain "
    "over source-only is smaller at 5 classes than at 10; SAN beats DANN at 5 and at 3 classes; SAN is not "
    "below source-only at 5 and 3 classes (the interval does not lie below 0). Reproduced if all hold in both "
    "directions, with intervals that exclude 0 for the first two; partly if at least half of the six hold; else "
    "not reproduced.",
    data=DATA,
)
def target_classes(running: Study) -> Outcome:
    """Sweep the size of the target's label set, first n digits, in both directions."""
    sizes = (10, 5, 3) if running.quick else SIZES
    total = len(DIRECTIONS) * len(running.seeds) * len(sizes) * len(METHODS)
    cells: dict[tuple[str, int, str], list[Any]] = {}
    for direction in DIRECTIONS:
        for seed in running.seeds:
            for size in sizes:
                for method in METHODS:
                    key = f"{direction}|first-{size}|{method}|{seed}"
                    cell = running.cell(key, partial(run, direction, f"first-{size}", method, seed), total)
                    cells.setdefault((direction, size, method), []).append(cell)
    accuracy = {key: [last_accuracy(cell) for cell in values] for key, values in cells.items()}
    verdict, checks, summary = decide(accuracy)
    return Outcome(verdict, summary, [*_tables(accuracy, sizes), checks], _figures(accuracy, sizes))


def decide(accuracy: dict[tuple[str, int, str], list[float]]) -> tuple[Verdict, Table, str]:
    """Apply the rule to accuracies by (direction, size, method)."""
    rows, held, words = [], 0, []
    for direction in DIRECTIONS:
        of = lambda size, method, d=direction: accuracy[d, size, method]  # noqa: E731
        gain = {n: [a - b for a, b in zip(of(n, "dann"), of(n, "source-only"), strict=True)] for n in (10, 5)}
        loses = paired_difference(gain[5], gain[10])
        wins = [paired_difference(of(n, "san"), of(n, "dann")) for n in (5, 3)]
        keeps = [paired_difference(of(n, "san"), of(n, "source-only")) for n in (5, 3)]
        outcome = (
            ("DANN's gain at 5 classes less its gain at 10", str(loses), loses.high < 0),
            ("SAN less DANN at 5 | 3 classes", " | ".join(map(str, wins)), all(w.low > 0 for w in wins)),
            ("SAN less source-only at 5 | 3 classes", " | ".join(map(str, keeps)), all(k.high >= 0 for k in keeps)),
        )
        for name, numbers, ok in outcome:
            rows.append([direction, name, numbers, "holds" if ok else "does not hold"])
            held += ok
        words.append(f"{direction}: SAN less DANN {wins[0]} points at 5 classes and {wins[1]} at 3")
    verdict: Verdict = "reproduced" if held == 6 else "partly" if held >= 3 else "not reproduced"
    table = Table(["direction", "difference, points", "mean and 95 % interval", "rule"], rows, "The rule's checks.")
    return verdict, table, "; ".join(words) + f"; {held} of 6 checks hold."


def _tables(accuracy: dict[tuple[str, int, str], list[float]], sizes: tuple[int, ...]) -> list[Table]:
    tables = []
    for direction in DIRECTIONS:
        rows: list[list[Any]] = [
            [size, *(str(interval(accuracy[direction, size, method])) for method in METHODS)] for size in sizes
        ]
        tables.append(Table(["target classes", *METHODS], rows, f"{direction}: target accuracy at the last step, %."))
    return tables


def _figures(accuracy: dict[tuple[str, int, str], list[float]], sizes: tuple[int, ...]) -> list[Figure]:
    figures = []
    for direction in DIRECTIONS:
        series = {}
        for method in METHODS:
            points: list[Interval] = [interval(accuracy[direction, size, method]) for size in sizes]
            series[method] = Series(
                list(sizes), [p.mean for p in points], [p.low for p in points], [p.high for p in points]
            )
        svg = lines(series, xlabel="classes in the target", ylabel="target accuracy, %")
        figures.append(
            Figure(
                svg=svg,
                caption=f"{direction}: target accuracy against the number of classes in the target; bands are 95 % "
                "intervals over seeds.",
                alt=f"Three curves of target accuracy, {direction}, for source-only, DANN and SAN.",
            )
        )
    return figures
