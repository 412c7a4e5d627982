"""``pooling/iterations``: accuracy and time against the number of Newton-Schulz iterations."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import torch

from convsmith.pooling import isqrt_covariance
from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import DATA
from experiments.studies.second_order_training import train, updates
from experiments.studies.statistics import interval, paired_difference

COUNTS = tuple(range(1, 9))
LITTLE = 1.0


@study(
    "pooling/iterations",
    claim="Five iterations suffice; three lose a little and are faster.",
    source="iSQRT-COV (Li et al., CVPR 2018), the experiments on the iterations, and the authors' MatConvNet notes",
    rule="Reproduced if no larger number beats 5 with a 95 % interval of the paired difference above 0, 3 lose less "
    "than 1 point on average, and the root of a 256-channel, 14 x 14 map takes less time with 3 than with 5; partly "
    "if the first holds; else not reproduced.",
    data=DATA,
)
def iterations(running: Study) -> Outcome:
    """Train with N = 1 to 8 iterations and time the root at its published size."""
    counts = (1, 3, 5, 7) if running.quick else COUNTS
    steps = updates(running.quick)
    total = len(counts) * (len(running.seeds) + 1)
    cells: dict[int, list[Any]] = {}
    for seed in running.seeds:
        for n in counts:
            work = partial(train, "isqrt-cov", seed, steps, running.device, options={"iterations": n})
            cells.setdefault(n, []).append(running.cell(f"N={n}|{seed}", work, total))
    seconds = {n: running.cell(f"time|N={n}", partial(timed, n, running.device), total) for n in counts}
    accuracy = {n: [cell["accuracy"] for cell in values] for n, values in cells.items()}
    verdict, checks = decide(accuracy, seconds)
    shown = {n: interval(values) for n, values in accuracy.items()}
    table = Table(
        ["iterations", "test accuracy, %", "root of 8 maps, forward and backward, ms"],
        [[n, str(shown[n]), round(1000 * seconds[n], 1)] for n in counts],
        f"{steps} updates of {len(running.seeds)} seeds; time on maps of 256 channels, 14 x 14, median of 7.",
    )
    figure = Figure(
        lines(
            {
                "iSQRT-COV": Series(
                    list(counts),
                    [shown[n].mean for n in counts],
                    [shown[n].low for n in counts],
                    [shown[n].high for n in counts],
                )
            },
            xlabel="iterations N",
            ylabel="test accuracy, %",
        ),
        "Accuracy against the number of iterations; the band is the 95 % interval over seeds.",
        "A curve of accuracy against the number of iterations.",
    )
    summary = (
        f"N=5 {shown[5]} %, N=3 {shown[3]} %, N=1 {shown[1]} %, N={counts[-1]} {shown[counts[-1]]} %; "
        f"the root takes {1000 * seconds[3]:.0f} ms with 3 and {1000 * seconds[5]:.0f} ms with 5."
    )
    return Outcome(verdict, summary, [table, checks], [figure])


def timed(n: int, device: str) -> float:
    """Return the median seconds of one root, forward and backward, after two warm-up rounds."""
    x = torch.randn(8, 256, 14, 14, generator=torch.Generator().manual_seed(0)).relu().to(device).requires_grad_()
    taken = []
    for repetition in range(9):
        begin = time.perf_counter()
        isqrt_covariance(x, iterations=n).sum().backward()
        if x.is_cuda:
            torch.cuda.synchronize()
        if repetition >= 2:
            taken.append(time.perf_counter() - begin)
    return sorted(taken)[len(taken) // 2]


def decide(accuracy: dict[int, list[float]], seconds: dict[int, float]) -> tuple[Verdict, Table]:
    """Apply the rule to accuracies and seconds by number of iterations."""
    against = {n: paired_difference(values, accuracy[5]) for n, values in accuracy.items() if n != 5}
    table = Table(
        ["difference, points", "mean and 95 % interval"],
        [[f"N={n} less N=5", str(found)] for n, found in against.items()],
        "The rule's checks.",
    )
    if len(accuracy[5]) < 2 or any(found.low > 0 for n, found in against.items() if n > 5):
        return "not reproduced", table
    return ("reproduced" if against[3].mean > -LITTLE and seconds[3] < seconds[5] else "partly"), table
