"""One recipe for every network of a redundancy study: same images, same order, same number of updates."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from convsmith.compression import cost
from convsmith.data import ImageData, Loader, load
from convsmith.training import ClassificationTask, TrainConfig, fit, predict

DATA = "mnist-5k, 14x14 pixels: 5,000 handwritten digits of MNIST, its own division, no augmentation"
SPEC, SIZE, BATCH = "mnist-5k", 14, 64
INPUT = (1, SIZE, SIZE)
Builder = Callable[[], nn.Module]


@dataclass(frozen=True)
class Recipe:
    """What every network of a study is trained on and how; the networks take [B, 1, size, size].

    ``whole`` trains on the validation images too, in a study where nothing is chosen on them.
    """

    spec: str = SPEC
    size: int = SIZE
    batch: int = BATCH
    lr: float = 0.1
    warmup: int = 0
    channels_last: bool = False
    whole: bool = False

    @property
    def shape(self) -> tuple[int, int, int]:
        """One image's shape."""
        return (1, self.size, self.size)


DIGITS = Recipe()


@functools.cache
def images(recipe: Recipe = DIGITS) -> ImageData:
    """Return the images, read once per process."""
    return load(recipe.spec, size=recipe.size, channels=1)


def accuracy(model: nn.Module, split: Any, device: str, batch: int = 250) -> float:
    """Return the share of a split's images whose largest logit is their label's, in percent."""
    logits, labels, _ = predict(model, Loader(split, batch), device)
    return 100 * float((logits.argmax(1) == labels).double().mean())


def updates(quick: bool) -> int:
    """Return the number of updates every arm gets."""
    return 60 if quick else 300


def train(build: Builder, seed: int, steps: int, device: str, recipe: Recipe = DIGITS) -> dict[str, Any]:
    """Train one network and return its test accuracy in percent with its counts and its time."""
    data = images(recipe)
    torch.manual_seed(seed)
    model = build()
    counted = cost(model, recipe.shape)
    if recipe.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    begin = time.perf_counter()
    config = TrainConfig(
        steps=steps, lr=recipe.lr, warmup_steps=min(recipe.warmup, steps // 4), weight_decay=1e-4, seed=seed,
        device=device, precision="fp32",
    )  # fmt: skip
    training = data.train.joined(data.validation) if recipe.whole else data.train
    loader = Loader(training, recipe.batch, seed=seed, shuffle=True, drop_last=True)
    result = fit(ClassificationTask(model, 10), loader, config)
    if result.interrupted:
        raise KeyboardInterrupt
    seconds = time.perf_counter() - begin
    return {
        "accuracy": accuracy(model, data.test, device),
        "params": counted.params,
        "macs": counted.macs,
        "seconds": round(seconds, 2),
    }


def latency(build: Builder, *, batch: int = 1, rounds: int = 15, shape: tuple[int, ...] = INPUT) -> float:
    """Return the median seconds of one forward pass on the CPU, in evaluation mode, after a warm-up."""
    model = build().eval().requires_grad_(False)
    x = torch.randn(batch, *shape)
    times = []
    with torch.no_grad():
        for repetition in range(rounds + 5):
            begin = time.perf_counter()
            model(x)
            if repetition >= 5:
                times.append(time.perf_counter() - begin)
    return sorted(times)[len(times) // 2]


def nearest(
    make: Callable[[int], nn.Module],
    target: int,
    kind: str = "params",
    step: int = 1,
    shape: tuple[int, int, int] = INPUT,
) -> int:
    """Return the width (a multiple of ``step``) whose network comes nearest to ``target`` parameters or MACs."""

    def size(width: int) -> int:
        with torch.device("meta"):
            model = make(width)
        return getattr(cost(model, shape), kind) if kind == "macs" else sum(p.numel() for p in model.parameters())

    low = high = step
    while size(high) < target:
        low, high = high, 2 * high
    while high - low > step:
        middle = (low + high) // (2 * step) * step
        low, high = (middle, high) if size(middle) < target else (low, middle)
    return min((low, high), key=lambda width: abs(size(width) - target))
