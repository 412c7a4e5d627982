"""``together/photographs``: one pretrained network through all four pillars, what each step costs and gives.

Budget, set before the run: the recipe of `transfer/styles` (150 updates of 32 + 32), all 7 x 7 positions, 3 seeds, one
direction, the target's first 20 of 53 classes; routes of 2 x 16 target pictures and their attacked versions (24 until
routes came to cost twice as much); about 30 minutes on one core. Nothing was tried out on these
pictures for this study.
"""

from __future__ import annotations

import time
from functools import partial
from statistics import median

import torch
from timm.data import resolve_model_data_config
from torch import nn

from convsmith.compression import compress, size
from convsmith.compression.planning.latency import time_side_by_side
from convsmith.compression.runtimes import runnable
from convsmith.data import ImageSplit, Preprocessing, load
from convsmith.data.classes import chosen_classes
from convsmith.report import Table
from experiments.datasets import backbone
from experiments.datasets.maps import ROOT, HeadOnMaps, divided
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.lean_training import accuracy
from experiments.studies.statistics import interval, paired_difference
from experiments.studies.style_transfer import DIRECTIONS, RECIPE, Recipe, styles, train
from experiments.studies.together_one_network import explain_and_guard

DIRECTION, CLASSES = "Google to OpenMoji", "first-20"
SHARP = partial(HeadOnMaps, pooling="isqrt-cov", dim=64)
IMAGES, EPSILON, CALIBRATION, BATCH = 16, 8 / 255, 128, 64
QUICK_RECIPE, QUICK_IMAGES = Recipe(steps=40, evaluate_every=40), 6

_ROWS = (
    ("source, average head, %", "source_average"),
    ("source, second-order head, %", "source_sharp"),
    ("target, average head, source-only, %", "target_average"),
    ("target, second-order head, source-only, %", "target_sharp"),
    ("target, second-order head, SAN, %", "target_san"),
    ("target, the same in int8, %", "target_int8"),
    ("file of int8, % of the original's", "int8_bytes"),
    ("time of int8 in ONNX Runtime, % of the original's", "int8_time"),
    ("predictions kept by the routes, %", "kept"),
    ("critical channels, %", "critical_share"),
    ("layers left open by the routes, %", "open_share"),
    ("predictions left without the 2 % most critical channels, %", "after_critical_removed"),
    ("predictions left without 2 % random channels, %", "after_random_removed"),
    ("pictures fooled by iterated FGSM at 8/255, %", "fooled"),
    ("AUROC of the route detector, x 100", "detector_auroc"),
    ("AUROC of max probability, x 100", "max_probability_auroc"),
    ("processor time of training three heads, s", "seconds_trained"),
    ("processor time of int8, s", "seconds_int8"),
    ("processor time of routes, attacks and detector, s", "seconds_routes"),
)


@study(
    "together/photographs",
    claim="One pretrained network can be sharper, portable, leaner, explainable and guarded at once: a second-order "
    "head, adapted to a partial target, in int8, explained by its routes, guarded by a detector.",
    source="the four themes of this library taken together; no paper makes this claim",
    rule="Five checks on the means over seeds: (1) the second-order head is not below the average head on held-out "
    "source pictures; (2) SAN is not below source-only on the target, both under the second-order head; (3) int8 takes "
    "at most 0.6 of the time in ONNX Runtime and loses at most 1 point; (4) routes keep every prediction with at most "
    "30 % of the channels and leave every layer open; (5) the detector's AUROC is at least 0.8 on pictures it was not "
    "fitted on. Reproduced: all five; partly: at least three; else not reproduced.",
    data="emoji of two drawing styles, 53 sub-groups of Unicode's list, at most 60 pictures each, the target without "
    "labels and with its first 20 classes only; EfficientNet-Lite0 (ImageNet) at 224 x 224, frozen up to its last "
    "convolution",
    extras=("compress", "onnx", "demo"),
    quick_seeds=1,
)
def photographs(running: Study) -> Outcome:
    """One network on its road, one cell a seed."""
    recipe, images = (QUICK_RECIPE, QUICK_IMAGES) if running.quick else (RECIPE, IMAGES)
    cells = [
        running.cell(str(seed), partial(travel, seed, recipe, images), len(running.seeds)) for seed in running.seeds
    ]
    verdict, checks, summary = judged(cells)
    rows = [[label, str(interval([cell[key] for cell in cells]))] for label, key in _ROWS]
    return Outcome(verdict, summary, [Table(["step", "mean and 95 % interval"], rows, "The road."), checks])


def judged(cells: list[dict[str, float]]) -> tuple[Verdict, Table, str]:
    """Apply the rule."""

    def column(key: str) -> list[float]:
        return [cell[key] for cell in cells]

    def mean(key: str) -> float:
        return interval(column(key)).mean

    sharper = paired_difference(column("source_sharp"), column("source_average"))
    moved = paired_difference(column("target_san"), column("target_sharp"))
    lost = paired_difference(column("target_san"), column("target_int8"))
    checks = [
        ["sharper", f"second-order less average head {sharper} points", sharper.mean >= 0],
        ["portable", f"SAN less source-only {moved} points", moved.mean >= 0],
        [
            "leaner",
            f"{mean('int8_time'):.0f} % of the time, {lost} points lost",
            mean("int8_time") <= 60 and lost.mean <= 1,
        ],
        [
            "explained",
            f"{mean('kept'):.0f} % kept with {mean('critical_share'):.1f} % of the channels, "
            f"{mean('open_share'):.0f} % of the layers open",
            mean("kept") == 100 and mean("critical_share") <= 30 and mean("open_share") == 100,
        ],
        ["guarded", f"AUROC {mean('detector_auroc') / 100:.2f}", mean("detector_auroc") >= 80],
    ]
    held = sum(bool(ok) for *_, ok in checks)
    verdict: Verdict = "reproduced" if held == 5 else "partly" if held >= 3 else "not reproduced"
    missed = ", ".join(str(name) for name, _, ok in checks if not ok) or "none"
    table = Table(
        ["check", "measured", "rule"],
        [[name, text, "holds" if ok else "does not hold"] for name, text, ok in checks],
        "The rule's checks.",
    )
    said = "; ".join(str(text) for _, text, _ in checks)
    return verdict, table, f"{held} of 5 checks hold (missed: {missed}): {said}."


def travel(seed: int, recipe: Recipe = RECIPE, images: int = IMAGES) -> dict[str, float]:
    """Sharpen, move, shrink, explain and guard one network; return every number. Target labels measure only."""
    source, whole = styles(DIRECTION, 1)
    held_out = divided(source, 0.2, seed)[1]
    target = whole.of_classes(chosen_classes(CLASSES, whole.classes))
    begin = time.process_time()
    found: dict[str, float] = {}
    heads = {}
    for name, method, head in (
        ("average", "source-only", HeadOnMaps),
        ("sharp", "source-only", SHARP),
        ("san", "san", SHARP),
    ):
        task = train(
            method, DIRECTION, target.without_labels(), seed, recipe, lambda *_: {"selection": 0.0}, head=head, stride=1
        )
        heads[name] = task.model.eval()
        found |= {
            f"source_{name}": accuracy(heads[name], held_out, "cpu", BATCH),
            f"target_{name}": accuracy(heads[name], target, "cpu", BATCH),
        }
    found["seconds_trained"] = time.process_time() - begin
    model = assembled(heads["san"])
    pictures = target_pictures(target.index)
    begin = time.process_time()
    found |= in_int8(model, pictures, seed)
    found["seconds_int8"] = time.process_time() - begin
    begin = time.process_time()
    guarded = explain_and_guard(model, pictures, seed, images, EPSILON)
    found |= {key: 100 * value if key.endswith("auroc") else value for key, value in guarded.items()}
    found["seconds_routes"] = time.process_time() - begin
    return {key: round(value, 4) for key, value in found.items()}


def assembled(head: nn.Module) -> nn.Module:
    """Return the frozen network with a trained head: images [B, 3, 224, 224] -> logits."""
    front = backbone.pretrained()
    whole = nn.Sequential(front.conv_stem, front.bn1, *front.blocks, head)
    return whole.eval()


def target_pictures(index: torch.Tensor) -> ImageSplit:
    """Return the target's pictures themselves, those that ``index`` numbers in their folder."""
    config = resolve_model_data_config(backbone.pretrained())
    own = {key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
    folder = ROOT / "styles" / DIRECTIONS[DIRECTION][1]
    data = load(f"imagefolder:{folder}", preprocessing=Preprocessing(**own))
    every = data.train.joined(data.validation, data.test)
    return every.subset(torch.isin(every.index, index))


def in_int8(model: nn.Module, pictures: ImageSplit, seed: int) -> dict[str, float]:
    """Return accuracy, bytes and time in int8, calibrated on unlabelled pictures of the target."""
    chosen = torch.randperm(len(pictures), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
    images = pictures.fetch(chosen).images
    made = compress(model, "int8", example=images)
    before, after = (size(net, images.shape[1:]) for net in (model, made))
    both = [runnable(net, images[:2], "onnxruntime", threads=1) for net in (model, made)]
    took = time_side_by_side(both, images[:1], seconds=3.0, least=50)
    return {
        "target_int8": accuracy(made, pictures, "cpu", BATCH),
        "int8_bytes": 100 * after.bytes / before.bytes,
        "int8_time": 100 * median(new / old for old, new in zip(*took, strict=True)),
    }
