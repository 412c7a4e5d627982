"""``redundancy/repair``: what half of the operations costs a trained network, before and after a short repair."""

from __future__ import annotations

import functools
from functools import partial
from typing import Any

import timm
import torch
from torch import nn

from convsmith import compression
from convsmith.data import ImageData, Loader, load
from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from convsmith.training import ClassificationTask, TrainConfig, fit
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import accuracy
from experiments.studies.statistics import Interval, interval, paired_difference

#: arm -> method, settings, whether it is repaired
ARMS: dict[str, tuple[str, dict[str, Any], bool]] = {
    "low rank": ("low-rank", {"keep_macs": 0.5}, True),
    "filters pruned": ("prune-filters", {"keep_macs": 0.5}, True),
    "channels pruned": ("prune-channels", {"keep_macs": 0.5}, True),
    "interleaved": ("interleave", {"keep_macs": 0.5, "backend": "group"}, True),
    "int8": ("int8", {}, False),
    "ternary": ("ternary", {}, True),
    "binary": ("binary", {}, True),
}
QUICK = ("low rank", "filters pruned", "interleaved", "int8")
#: the default of the repair was chosen on the validation images of the seeds before this one
FIRST = 3
LOSS, LOSS_INT8 = 1.0, 0.5
BATCH = 64


@study(
    "redundancy/repair",
    claim="What pruning, low rank or interleaving takes from the accuracy of a trained network, a short fine-tuning "
    "gives back: half of the operations are redundant.",
    source="Li et al. 2017, section 3.4; Han et al. 2015; the article's overview of redundancy reduction",
    rule="Every arm at half of the MACs, ten epochs of the library's default repair. Reproduced if no arm of low "
    f"rank, pruning and interleaving loses more than {LOSS:g} point of test accuracy on average, paired by seed, and "
    f"int8 without repair at most {LOSS_INT8:g}; partly if at least one of each kind (low rank, pruning, interleaving, "
    "int8) keeps to that; else not reproduced. Ternary and binary are reported only. The default's learning rate and "
    f"distillation were compared on validation images of seeds 0 to {FIRST - 1} only; the study starts at {FIRST}.",
    data="digits: 1,797 handwritten digits of UCI, 8x8 pixels, divided anew by every seed (1,259 to train, 359 to "
    "test), shifted and turned a little while training",
    extras=("compress",),
)
def repaired(running: Study) -> Outcome:
    """Train one control network per seed, halve it in every way, finetune, compare on test images."""
    arms = QUICK if running.quick else tuple(ARMS)
    epochs = (6, 2) if running.quick else (20, 10)
    seeds = [seed + FIRST for seed in running.seeds]
    cells: dict[str, list[Any]] = {}
    for seed in seeds:
        for arm in arms:
            work = partial(one, arm, seed, epochs, running.device)
            cells.setdefault(arm, []).append(running.cell(f"{arm}|{seed}", work, len(arms) * len(seeds)))

    def lost(arm: str, key: str) -> Interval:
        return paired_difference([c["original"] for c in cells[arm]], [c[key] for c in cells[arm]])

    losses = {arm: lost(arm, "accuracy") for arm in arms}
    rows = [
        [
            arm,
            round(100 * max(c["macs"] for c in cells[arm]), 1),
            str(lost(arm, "before")),
            str(losses[arm]),
            round(max(c["original"] - c["accuracy"] for c in cells[arm]), 2),
            *[round(c["original"] - c["accuracy"], 2) for c in cells[arm]],
        ]
        for arm in arms
    ]
    table = Table(
        ["way", "MACs, %", "points lost before repair", "points lost", "at worst", *(f"seed {s}" for s in seeds)],
        rows,
        f"{epochs[0]} epochs of training, {epochs[1]} of repair, int8 unrepaired; one test image is 0.28 points.",
    )
    judged = [arm for arm in arms if arm not in ("ternary", "binary")]
    figure = Figure(
        bars(
            {arm: (loss.mean, loss.low, loss.high) for arm, loss in losses.items()},
            xlabel="points of test accuracy lost",
            reference=(LOSS, "rule"),
        ),
        "Test accuracy lost, mean over seeds with 95 % interval; int8, ternary and binary keep all operations.",
        ", ".join(f"{arm}: {loss}" for arm, loss in losses.items()),
    )
    worst = max(judged, key=lambda arm: losses[arm].mean)
    original = interval([c["original"] for c in cells[arms[0]]])
    summary = f"Original {original} %; of the judged ways {worst} loses most, {losses[worst]} points."
    return Outcome(decide({arm: loss.mean for arm, loss in losses.items()}), summary, [table], [figure])


def decide(losses: dict[str, float]) -> Verdict:
    """Apply the rule to the mean loss by arm, in points."""
    holds = {arm for arm, loss in losses.items() if loss <= (LOSS_INT8 if arm == "int8" else LOSS)}
    judged = [arm for arm in losses if arm not in ("ternary", "binary")]
    if all(arm in holds for arm in judged):
        return "reproduced"
    kinds = (("low rank",), ("filters pruned", "channels pruned"), ("interleaved",), ("int8",))
    return "partly" if all(holds.intersection(kind) for kind in kinds) else "not reproduced"


def one(arm: str, seed: int, epochs: tuple[int, int], device: str) -> dict[str, Any]:
    """Return test accuracies in percent and the share of MACs for one arm and seed."""
    data, original = control(seed, epochs[0], device)
    method, settings, repairs = ARMS[arm]
    example = data.train.fetch(torch.arange(128)).images.to(device)
    made = compression.compress(original, method, example=example, reconstruct=False, **settings)
    before = accuracy(made, data.test, device)
    if repairs:
        config = TrainConfig(epochs=epochs[1], lr=0.02, clip=1.0, seed=seed, device=device, precision="fp32")
        made = compression.finetune(made, original, _batches(data, seed), num_classes=10, config=config)
    shape = tuple(example.shape[1:])
    return {
        "original": accuracy(original, data.test, device),
        "before": before,
        "accuracy": accuracy(made, data.test, device),
        "macs": compression.cost(made, shape).macs / compression.cost(original, shape).macs,
    }


@functools.lru_cache(maxsize=1)
def control(seed: int, epochs: int, device: str) -> tuple[ImageData, nn.Module]:
    """Train the control network of a seed on its own division of the images; the last one is remembered."""
    data = load("digits", seed=seed, augment="digits")
    torch.manual_seed(seed)
    model = timm.create_model("cs_resnet20", num_classes=10, in_chans=1)
    config = TrainConfig(epochs=epochs, lr=0.1, seed=seed, device=device, precision="fp32")
    if fit(ClassificationTask(model, 10), _batches(data, seed), config).interrupted:
        raise KeyboardInterrupt
    return data, model.eval()


def _batches(data: ImageData, seed: int) -> Loader:
    return Loader(data.train, BATCH, seed=seed, shuffle=True, augment=True, drop_last=True)
