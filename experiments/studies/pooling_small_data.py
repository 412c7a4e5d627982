"""``pooling/small-data``: the gain over average pooling by the number of training images, every pooling."""

from __future__ import annotations

from functools import partial
from typing import Any

from convsmith.pooling import available
from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import DATA
from experiments.studies.second_order_training import train, updates
from experiments.studies.statistics import Interval, interval, paired_difference

SIZES = (50, 200, 1000, 3500)
OURS = "isqrt-cov"


@study(
    "pooling/small-data",
    claim="The gain of second-order pooling over average pooling holds or grows on small training sets.",
    source="MPN-COV (ICCV 2017) and iSQRT-COV (CVPR 2018), the experiments with few images a class",
    rule="Reproduced if iSQRT-COV less average pooling has a 95 % interval above 0 at the smallest size and a mean "
    "above 0 at every size; partly if the interval is above 0 at some size; else not reproduced.",
    data=DATA + "; the first 50 to 3,500 training images of a random order",
)
def small_data(running: Study) -> Outcome:
    """Train on 50 to 3,500 images, the number of updates the same for all."""
    sizes = (50, 1000) if running.quick else SIZES
    arms = ("average", OURS, "mpn-cov", "bilinear") if running.quick else tuple(available())
    steps = updates(running.quick)
    total = len(sizes) * len(arms) * len(running.seeds)
    cells: dict[tuple[str, int], list[Any]] = {}
    for seed in running.seeds:
        for size in sizes:
            for arm in arms:
                work = partial(train, arm, seed, steps, running.device, images_used=size)
                cells.setdefault((arm, size), []).append(running.cell(f"{arm}|{size}|{seed}", work, total))
    accuracy = {key: [cell["accuracy"] for cell in values] for key, values in cells.items()}
    gains = {size: paired_difference(accuracy[OURS, size], accuracy["average", size]) for size in sizes}
    verdict = decide(gains)
    table = Table(
        ["pooling", *(f"{size} images, %" for size in sizes)],
        [[arm, *(str(interval(accuracy[arm, size])) for size in sizes)] for arm in arms],
        f"Test accuracy after {steps} updates of {len(running.seeds)} seeds.",
    )
    checks = Table(
        ["images", "iSQRT-COV less average, points"],
        [[size, str(gain)] for size, gain in gains.items()],
        "The rule's checks.",
    )
    shown = {}
    for arm in ("average", OURS, "mpn-cov"):
        points = [interval(accuracy[arm, size]) for size in sizes]
        shown[arm] = Series(list(sizes), [p.mean for p in points], [p.low for p in points], [p.high for p in points])
    figure = Figure(
        lines(shown, xlabel="training images", ylabel="test accuracy, %", logx=True),
        "Accuracy against the number of training images; bands are 95 % intervals over seeds.",
        "Three rising curves of accuracy against the number of training images.",
    )
    listed = ", ".join(f"{gain} points at {size} images" for size, gain in gains.items())
    summary = f"iSQRT-COV less average pooling: {listed}."
    return Outcome(verdict, summary, [table, checks], [figure])


def decide(gains: dict[int, Interval]) -> Verdict:
    """Apply the rule to the gains by number of images."""
    sure = {size: gain.n >= 2 and gain.low > 0 for size, gain in gains.items()}
    if sure[min(gains)] and all(gain.mean > 0 for gain in gains.values()):
        return "reproduced"
    return "partly" if any(sure.values()) else "not reproduced"
