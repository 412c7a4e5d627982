"""``redundancy/pretrained``: each kind of redundancy taken out of a pretrained network fine-tuned on 53 classes.

Budget, set before the full run: the network is fine-tuned for 240 updates of 32 pictures of 96 x 96 (rate 0.02); every
way then gets 200 unlabelled training pictures, and two epochs of the library's default repair with the original as only
teacher or with labels and teacher; the original gets the same two epochs. 3 seeds, each with a division of the pictures
of its own, about 45 minutes on one core. The quick form was run once before, on seed 0, with the repair of
`redundancy/without-labels`, whose rate is meant for hundreds of crops; it was replaced by the default. Times were
taken while others used the machine, in turn with the original's; low rank was run again when its depthwise layers,
factored until then, had been seen to double its time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, partial
from statistics import median
from typing import Any

import torch
from timm.data import resolve_model_data_config
from torch import nn

from convsmith.compression import compress, finetune, size
from convsmith.compression.planning.latency import time_side_by_side
from convsmith.compression.runtimes import runnable
from convsmith.data import ImageData, Loader, Preprocessing, load
from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from convsmith.training import ClassificationTask, TrainConfig, fit, predict
from experiments.datasets import backbone
from experiments.datasets.maps import ROOT
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.statistics import interval, paired_difference

SIDE, BATCH, IMAGES = 96, 32, 200
ORIGINAL = "original"
#: arm -> method and settings
ARMS: dict[str, tuple[str, dict[str, Any]]] = {
    ORIGINAL: ("", {}),
    "low rank": ("low-rank", {"keep_macs": 0.7}),
    "filters pruned": ("prune-filters", {"keep_macs": 0.7}),
    "interleaved": ("interleave", {"keep_macs": 0.7}),
    "sparse": ("sparse", {"sparsity": 0.5}),
    "int8": ("int8", {}),
}
QUICK = (ORIGINAL, "filters pruned", "int8")
WITHOUT, TAUGHT, TUNED = "without labels", "taught by the original", "fine-tuned with labels"
#: way -> weight of the teacher against the labels
WAYS = {TAUGHT: 1.0, TUNED: 0.5}
STEPS, EPOCHS = 240, 2
QUICK_STEPS, QUICK_EPOCHS = 60, 1
LOSS = 1.0


@study(
    "redundancy/pretrained",
    claim="A third of the operations of a pretrained, fine-tuned network, half of its weights or three quarters of its "
    "bits are redundant: low rank, pruning, interleaving, sparsity and int8 cost little accuracy.",
    source="the article's overview of redundancy reduction; Li et al. 2017, section 3.4; Han et al. 2015",
    rule="Test accuracy after two epochs with labels and teacher (int8: without any), less that of the original after "
    f"the same two epochs, paired by seed. A kind is redundant if at most {LOSS:g} point is lost on average. "
    "Reproduced if all kinds are; partly if at least two are; else not reproduced. What is left without labels is "
    "published without a rule.",
    data="emoji in one drawing style (Noto), 53 sub-groups of Unicode's list, 1,567 pictures at 96 x 96, divided "
    "70 : 10 : 20 anew by every seed; EfficientNet-Lite0 (ImageNet), all of it trained",
    extras=("compress", "onnx", "demo"),
    quick_seeds=1,
)
def pretrained(running: Study) -> Outcome:
    """Fine-tune one network a seed, take redundancy out in every way, repair in two."""
    steps, epochs = (QUICK_STEPS, QUICK_EPOCHS) if running.quick else (STEPS, EPOCHS)
    ways = (TUNED,) if running.quick else tuple(WAYS)
    cells = running.arms(QUICK if running.quick else ARMS, partial(one, steps=steps, epochs=epochs, ways=ways))
    base = [cell[TUNED] for cell in cells[ORIGINAL]]
    lost = {arm: paired_difference(base, [cell[_final(arm)] for cell in own]) for arm, own in cells.items()}
    del lost[ORIGINAL]
    columns = ["way", "MACs, %", "file, %", "ONNX Runtime's time, %", "same answers without labels, %"]
    accuracy = Table(
        ["way", *(f"{way}, %" for way in (WITHOUT, *ways)), "points lost"],
        [
            [arm, *(_interval(own, way) for way in (WITHOUT, *ways)), str(lost.get(arm, ""))]
            for arm, own in cells.items()
        ],
        f"Test accuracy, {epochs} epochs of repair, seeds: {len(base)}. Points lost: last way there is, against the "
        "original after the same epochs.",
    )
    gains = Table(
        columns,
        [
            [
                arm,
                *(round(100 * median(c[k] for c in own), 1) for k in ("macs", "bytes", "time")),
                _interval(own, "same"),
            ]
            for arm, own in cells.items()
            if arm != ORIGINAL
        ],
        "Of the original's: multiplications for one picture, weights file, time of one picture on one thread measured "
        "in turn with the original (medians over seeds); same answers: share of test pictures.",
    )
    figure = Figure(
        bars(
            {arm: (loss.mean, loss.low, loss.high) for arm, loss in lost.items()},
            xlabel="points of test accuracy lost",
            reference=(LOSS, "rule"),
        ),
        "Test accuracy lost after repair, mean over seeds with 95 % interval.",
        ", ".join(f"{arm}: {loss}" for arm, loss in lost.items()),
    )
    summary = f"Original {interval(base)} %; points lost: " + ", ".join(f"{arm} {loss}" for arm, loss in lost.items())
    return Outcome(decide({arm: loss.mean for arm, loss in lost.items()}), f"{summary}.", [accuracy, gains], [figure])


def decide(lost: dict[str, float]) -> Verdict:
    """Apply the rule to the mean points lost by arm."""
    redundant = [mean <= LOSS for mean in lost.values()]
    return "reproduced" if all(redundant) else "partly" if sum(redundant) >= 2 else "not reproduced"


def _final(arm: str) -> str:
    return WITHOUT if arm == "int8" else TUNED


def _interval(cells: list[Any], key: str) -> str | None:
    return str(interval([cell[key] for cell in cells])) if key in cells[0] else None


@lru_cache(maxsize=1)
def original(seed: int, steps: int) -> tuple[nn.Module, ImageData]:
    """Return the pretrained network after ``steps`` updates on the seed's division of the pictures, and these."""
    model = backbone.pretrained()
    config = {**resolve_model_data_config(model), "input_size": (3, SIDE, SIDE), "crop_pct": 1.0}
    own = {key: config[key] for key in ("input_size", "interpolation", "mean", "std", "crop_pct")}
    data = load(f"imagefolder:{ROOT / 'styles' / 'google'}", seed=seed, preprocessing=Preprocessing(**own))
    torch.manual_seed(seed)
    model.reset_classifier(len(data.train.description.classes))
    settings = TrainConfig(steps=steps, lr=0.02, clip=5.0, seed=seed, device="cpu", warmup_steps=20)
    loader = Loader(data.train, BATCH, seed=seed, shuffle=True, drop_last=True)
    if fit(ClassificationTask(model, model.num_classes), loader, settings).interrupted:
        raise KeyboardInterrupt
    return model.eval(), data


def one(arm: str, seed: int, steps: int, epochs: int, ways: Sequence[str]) -> dict[str, float]:
    """Return one arm's accuracies in per cent by way, and its MACs, bytes and time as shares of the original's."""
    model, data = original(seed, steps)
    scores, labels = answers(model, data)
    if arm == ORIGINAL:
        found = {WITHOUT: right(scores, labels)}
        return found | {way: right(*answers(repaired(model, model, data, seed, way, epochs), data)) for way in ways}
    method, settings = ARMS[arm]
    rows = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))[:IMAGES]
    images = data.train.fetch(rows).images
    made = compress(model, method, example=images, **settings).eval()
    own = answers(made, data)
    before, after = (size(net, images.shape[1:]) for net in (model, made))
    both = [runnable(net, images[:2], "onnxruntime", threads=1) for net in (model, made)]
    took = time_side_by_side(both, images[:1], seconds=3.0, least=50)
    found = {
        WITHOUT: right(*own),
        "same": 100 * float((own[0].argmax(1) == scores.argmax(1)).double().mean()),
        "macs": after.macs / before.macs,
        "bytes": after.bytes / before.bytes,
        "time": median(new / old for old, new in zip(*took, strict=True)),
    }
    for way in () if arm == "int8" else ways:
        found[way] = right(*answers(repaired(made, model, data, seed, way, epochs), data))
    return found


def repaired(made: nn.Module, model: nn.Module, data: ImageData, seed: int, way: str, epochs: int) -> nn.Module:
    """Return ``made`` after the default repair with ``model`` as teacher, alone or beside the labels."""
    loader = Loader(data.train, BATCH, seed=seed, shuffle=True, drop_last=True)
    classes = len(data.train.description.classes)
    return finetune(made, model, loader, num_classes=classes, epochs=epochs, distill=WAYS[way])


def answers(model: nn.Module, data: ImageData) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits and labels of the test pictures."""
    logits, labels, _ = predict(model, Loader(data.test, 100), "cpu")
    return logits, labels


def right(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """Return accuracy in per cent."""
    return 100 * float((logits.argmax(1) == labels).double().mean())
