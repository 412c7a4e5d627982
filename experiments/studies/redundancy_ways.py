"""``redundancy/ways``: low precision, low rank, sparse and interleaved kernels on one trained network."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from convsmith import compression
from convsmith.data import Loader
from convsmith.report import Figure, Table
from convsmith.report.figures import scatter
from convsmith.training import ClassificationTask, TrainConfig, fit
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import BATCH, DATA, INPUT, accuracy, images
from experiments.studies.statistics import interval, paired_difference

#: arm -> method (or several, in order), settings of the first, whether that one is repaired
ARMS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "low rank, half the MACs": ("low-rank", {"keep_macs": 0.5}, True),
    "filters pruned, half the MACs": ("prune-filters", {"keep_macs": 0.5}, True),
    "channels pruned, half the MACs": ("prune-channels", {"keep_macs": 0.5}, True),
    "interleaved, half the MACs": ("interleave", {"keep_macs": 0.5, "backend": "group"}, True),
    "sparse, half the weights": ("sparse", {"keep_params": 0.5}, True),
    "2:4 sparse": ("structured-sparse", {}, True),
    "int8": ("int8", {}, False),
    "int8 weights": ("int8", {"mode": "weight-only"}, False),
    "ternary": ("ternary", {}, True),
    "binary": ("binary", {}, True),
    "low rank, repaired, then int8": ("low-rank,int8", {"keep_macs": 0.5}, True),
}
QUICK = ("low rank, half the MACs", "filters pruned, half the MACs", "interleaved, half the MACs", "int8", "ternary")
LOSS, LIMIT = 1.0, 2.0


@study(
    "redundancy/ways",
    claim="The redundancy of a trained convolutional network can be taken out by low precision, by low rank, by "
    "sparsity and by interleaving, with little loss of accuracy.",
    source="The article's overview of redundancy reduction; IGCV2, section 1",
    rule=f"A way holds if its mean loss against the original, paired by seed, is at most {LOSS:g} point and the upper "
    f"end of its 95 % interval below {LIMIT:g}. Reproduced if all ways but ternary and binary hold; partly if at least "
    "one way of each kind (low precision, low rank, sparse, interleaved) holds; else not reproduced.",
    data=DATA,
    extras=("compress",),
)
def ways(running: Study) -> Outcome:
    """Train one control network per seed, compress it in every way, finetune, measure."""
    arms = QUICK if running.quick else tuple(ARMS)
    steps = (120, 40) if running.quick else (400, 150)
    cells = running.arms(arms, partial(one, steps=steps, device=running.device))
    losses = {
        arm: paired_difference([c["original"] for c in values], [c["accuracy"] for c in values])
        for arm, values in cells.items()
    }
    verdict = decide({arm: (loss.mean, loss.high) for arm, loss in losses.items()})
    rows: list[list[Any]] = []
    for arm, values in cells.items():
        first = values[0]
        rows.append(
            [
                arm,
                round(100 * first["macs"], 1),
                round(100 * first["params"], 1),
                round(100 * first["bytes"], 1),
                round(100 * sorted(c["time"] for c in values)[len(values) // 2], 1),
                str(interval([c["before"] for c in values])),
                str(interval([c["accuracy"] for c in values])),
                str(losses[arm]),
            ]
        )
    columns = ["way", "MACs, %", "non-zero weights, %", "file, %", "eager time, %"]
    table = Table(
        [*columns, "accuracy before repair, %", "accuracy, %", "points lost"],
        rows,
        f"Shares of the original's, seed {running.seeds[0]}; time at batch 1, one thread, median over seeds. "
        f"{steps[0]} updates of training, {steps[1]} of repair; int8 is not repaired.",
    )
    points = {
        arm: (100 * values[0]["bytes"], interval([c["accuracy"] for c in values]).mean) for arm, values in cells.items()
    }
    figure = Figure(
        scatter(points, xlabel="file, % of the original's", ylabel="test accuracy, %", front=_front(points), logx=True),
        "Accuracy against the size of the file; the line joins the Pareto front.",
        ", ".join(f"{arm}: {y:.1f} % at {x:.0f} % of the file" for arm, (x, y) in points.items()),
    )
    worst = max(losses, key=lambda arm: losses[arm].mean)
    original = interval([c["original"] for c in cells[arms[0]]])
    summary = f"Original {original} %; the largest loss is {losses[worst]} points ({worst})."
    notes = ["Zeros and low-bit weights shrink the file; torch's dense kernels gain no time from them."]
    return Outcome(verdict, summary, [table], [figure], notes)


def decide(losses: dict[str, tuple[float, float]]) -> Verdict:
    """Apply the rule to (mean loss, upper end of its interval) by arm."""
    holds = {arm for arm, (mean, high) in losses.items() if mean <= LOSS and high < LIMIT}
    wanted = [arm for arm in losses if arm not in ("ternary", "binary")]
    if all(arm in holds for arm in wanted):
        return "reproduced"
    kinds = (
        ("int8",),
        ("low-rank", "prune-filters", "prune-channels"),
        ("sparse", "structured-sparse"),
        ("interleave",),
    )
    there = {arm: ARMS[arm][0] for arm in losses}
    for kind in kinds:
        mine = [arm for arm, method in there.items() if method in kind]
        if mine and not any(arm in holds for arm in mine):
            return "not reproduced"
    return "partly"


def one(arm: str, seed: int, steps: tuple[int, int], device: str) -> dict[str, Any]:
    """Return accuracy in percent and shares of the original for one arm and seed."""
    original = control(seed, steps[0], device)
    method, settings, repaired = ARMS[arm]
    data = images()
    example = data.train.fetch(torch.arange(128)).images.to(device)
    first, *further = method.split(",")
    made = compression.compress(original, first, example=example, reconstruct=False, **settings)
    before = accuracy(made, data.test, device)
    if repaired:
        loader = Loader(data.train, BATCH, seed=seed, shuffle=True, drop_last=True)
        config = TrainConfig(steps=steps[1], lr=0.02, clip=1.0, seed=seed, device=device, precision="fp32")
        made = compression.finetune(made, original, loader, num_classes=10, config=config)
    for name in further:
        made = compression.compress(made.eval(), name, example=example, reconstruct=False)
    a, b = compression.size(original, INPUT), compression.size(made, INPUT)
    timed = compression.latencies(
        {"original": original, "made": made}, example, batches=(1,), compiled=False, threads=1, seconds=0.2
    )["made"]["eager 1"]
    assert isinstance(timed, compression.Latency)
    return {
        "original": accuracy(original, data.test, device),
        "before": before,
        "accuracy": accuracy(made, data.test, device),
        "macs": b.macs / a.macs,
        "params": b.nonzero / a.nonzero,
        "bytes": (b.bytes + b.recipe) / (a.bytes + a.recipe),
        "time": timed.ratio,
    }


@functools.lru_cache(maxsize=1)
def control(seed: int, steps: int, device: str) -> nn.Module:
    """Train the control network of a seed; the last one is remembered."""
    torch.manual_seed(seed)
    model = timm.create_model("cs_resnet20", num_classes=10, in_chans=1)
    loader = Loader(images().train, BATCH, seed=seed, shuffle=True, drop_last=True)
    config = TrainConfig(steps=steps, lr=0.1, seed=seed, device=device, precision="fp32")
    if fit(ClassificationTask(model, 10), loader, config).interrupted:
        raise KeyboardInterrupt
    return model.eval()


def _front(points: dict[str, tuple[float, float]]) -> list[str]:
    return [
        arm
        for arm, (x, y) in points.items()
        if not any(a <= x and b >= y and (a, b) != (x, y) for other, (a, b) in points.items() if other != arm)
    ]
