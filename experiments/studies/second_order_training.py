"""One recipe for every pooling of the pooling studies: same network, images, order and number of updates."""

from __future__ import annotations

import time
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.data import Loader
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.pooling import POOLINGS
from convsmith.training import ClassificationTask, TrainConfig, fit
from experiments.studies.lean_training import DIGITS, Recipe, accuracy, images

CHANNELS, CLASSES = 32, 10
CHANCE = 100 / CLASSES
#: where a pooling has no default reduction; the two that have one are told to leave it out
NO_REDUCTION: dict[str, Any] = {"dim": None}


def updates(quick: bool) -> int:
    """Return the number of updates every arm gets."""
    return 80 if quick else 300


class PooledNet(nn.Module):
    """Three convolutions to 32 channels at 7 x 7 positions, a pooling, one linear layer (two with ``hidden`` units)."""

    def __init__(self, pooling: str, hidden: int | None = None, **options: Any) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for taken, given in ((1, 16), (16, 32), (32, CHANNELS)):
            layers += [nn.Conv2d(taken, given, 3, padding=1, bias=False), nn.BatchNorm2d(given), nn.ReLU()]
            if taken == 1:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.pooling = POOLINGS.entry(pooling).value(CHANNELS, **NO_REDUCTION, **options)
        last = nn.Linear(hidden or self.pooling.out_features, CLASSES)
        nn.init.zeros_(last.bias)
        self.classifier: nn.Module = last
        if hidden:
            self.classifier = nn.Sequential(nn.Linear(self.pooling.out_features, hidden), nn.ReLU(), last)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, 10]."""
        return self.classifier(self.pooling(self.features(x)))


def train(
    pooling: str,
    seed: int,
    steps: int,
    device: str,
    *,
    options: dict[str, Any] | None = None,
    images_used: int | None = None,
    evaluate_every: int | None = None,
    recipe: Recipe = DIGITS,
) -> dict[str, Any]:
    """Train one network; return test accuracy in percent, seconds, and the validation curve if one is asked for.

    ``images_used`` takes the first so many of a random order that only the seed decides. A run whose numbers stop being
    finite is a result: its accuracy is chance, ``failed`` says what happened.
    """
    data = images(recipe)
    part = data.train
    if images_used is not None:
        order = torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))
        part = part.subset(order[:images_used])
    torch.manual_seed(seed)
    model = PooledNet(pooling, **(options or {}))
    config = TrainConfig(
        steps=steps,
        lr=0.05,
        weight_decay=1e-4,
        clip=5.0,
        seed=seed,
        device=device,
        precision="fp32",
        evaluate_every=evaluate_every,
    )
    loader = Loader(part, min(recipe.batch, len(part)), seed=seed, shuffle=True, drop_last=True)
    validation = None if evaluate_every is None else Loader(data.validation, 250)
    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # that an iteration diverges is what a study asks for
        try:
            result = fit(ClassificationTask(model, CLASSES), loader, config, validation=validation)
            if result.interrupted:
                raise KeyboardInterrupt
            found: dict[str, Any] = {"accuracy": accuracy(model, data.test, device), "params": head_size(model)}
        except (RunFailed, InvalidArgument) as error:
            if "finite" not in str(error):
                raise
            return {"accuracy": CHANCE, "failed": "a value was no longer finite", "seconds": 0.0}
    found["seconds"] = round(time.perf_counter() - begin, 2)
    if evaluate_every is not None:
        rows = [row for row in result.history if row["kind"] == "evaluation"]
        found["curve"] = [[row["step"], round(100 * row["accuracy"], 3)] for row in rows]
    return found


def head_size(model: PooledNet) -> int:
    """Return the parameters behind the last convolution."""
    return sum(p.numel() for module in (model.pooling, model.classifier) for p in module.parameters())


def accuracies(cells: Mapping[str, Sequence[dict[str, Any]]]) -> dict[str, list[float]]:
    """Return the accuracies of each arm, one per seed."""
    return {arm: [cell["accuracy"] for cell in values] for arm, values in cells.items()}
