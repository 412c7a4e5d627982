"""Controls of ``redundancy/fashion``: networks whose accuracy others published, trained as they trained them.

All take 60,000 training images and are read once, after the last pass. The two lists: Xiao et al. 2017, table 3
(scikit-learn's classifiers); the table of results sent to the authors, in the README of the data set's repository.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

from convsmith.data import Loader
from convsmith.report import Table
from convsmith.training import ClassificationTask, TrainConfig, fit
from experiments.studies.contract import Study
from experiments.studies.lean_training import Recipe, accuracy, images
from experiments.studies.statistics import interval

OURS: dict[str, Any] = {"batch": 256, "passes": 10, "lr": 0.2, "warmup_steps": 40, "weight_decay": 1e-4}
ADAM: dict[str, Any] = {"batch": 1000, "passes": 30, "lr": 1e-3, "optimizer": "adam"}
SGD: dict[str, Any] = {"batch": 200, "passes": 25, "lr": 0.1, "momentum": 0.8, "nesterov": False}
STEADY = {"schedule": "constant", "weight_decay": 0.0}


def perceptron(*widths: int) -> nn.Module:
    """Build fully connected layers over 28x28 pixels, with ReLU between them."""
    sizes = (784, *widths, 10)
    layers = [layer for pair in pairwise(sizes) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *layers[:-1])


def two_convolutions() -> nn.Module:
    """Build two 5x5 convolutions of 32 and 64 channels, each pooled by its largest of 2x2, and a linear layer."""
    layers: list[nn.Module] = []
    for before, after in ((1, 32), (32, 64)):
        layers += [nn.Conv2d(before, after, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * 7 * 7, 10))


@dataclass(frozen=True)
class Control:
    """A network, the accuracy in percent that others published for it, and a recipe (None: scikit-learn's own).

    ``seeds``: on how many of the study's; None for all.
    """

    published: float
    where: str
    build: Callable[[], nn.Module]
    words: str
    recipe: Mapping[str, Any] | None
    seeds: int | None = None


PAPER, LIST = "the data set's paper", "the data set's list"
SKLEARN = "the paper's: scikit-learn, pixels standardised"
CONTROLS = {
    "linear": Control(84.2, PAPER, perceptron, "this study's, 10 passes", OURS),
    "perceptron 100": Control(87.1, PAPER, partial(perceptron, 100), SKLEARN, None),
    "perceptron 100, our recipe": Control(87.1, PAPER, partial(perceptron, 100), "this study's, 10 passes", OURS),
    "perceptron 256-128-64": Control(
        90.0, LIST, partial(perceptron, 256, 128, 64), "theirs: SGD 0.1, momentum 0.8, batches of 200, 25 passes",
        SGD | STEADY,
    ),
    "two convolutions": Control(
        92.5, LIST, two_convolutions, "theirs: Adam 0.001, batches of 1,000, 30 passes", ADAM | STEADY, 1
    ),
}  # fmt: skip


def controls(running: Study, recipe: Recipe) -> Table:
    """Train every control with every seed; one row each, beside what was published."""
    rows = []
    for name, control in CONTROLS.items():
        runs = [
            running.cell(f"published|{name}|{seed}", partial(trained, control, seed, running.device, recipe))
            for seed in running.seeds[: control.seeds]
        ]
        found = interval([run["accuracy"] for run in runs])
        difference = f"{found.mean - control.published:+.1f}"
        rows.append([name, runs[0]["params"], control.words, control.where, control.published, str(found), difference])
    columns = ["network", "parameters", "recipe", "published in", "published, %", "test accuracy, %", "difference"]
    return Table(columns, rows, "Networks whose accuracy others published, after the last pass.")


def trained(control: Control, seed: int, device: str, recipe: Recipe) -> dict[str, Any]:
    """Train one control and return its test accuracy in percent and its parameters."""
    torch.manual_seed(seed)
    model = control.build()
    params = sum(p.numel() for p in model.parameters())
    if control.recipe is None:
        return {"accuracy": by_scikit_learn(seed, recipe), "params": params}
    data = images(recipe)
    own = dict(control.recipe)
    batch, passes = own.pop("batch"), own.pop("passes")
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    loader = Loader(data.train.joined(data.validation), batch, seed=seed, shuffle=True, drop_last=True)
    config = TrainConfig(epochs=passes, seed=seed, device=device, precision="fp32", **own)
    if fit(ClassificationTask(model, 10), loader, config).interrupted:
        raise KeyboardInterrupt
    return {"accuracy": accuracy(model, data.test, device), "params": params}


def by_scikit_learn(seed: int, recipe: Recipe) -> float:
    """Train the paper's perceptron as its benchmark does, with scikit-learn's defaults of 2017."""
    data = images(recipe)
    sides = []
    for split in (data.train.joined(data.validation), data.test):
        whole = split.fetch(torch.arange(len(split)))
        sides.append((whole.images.flatten(1).numpy(), whole.labels.numpy()))
    # two epochs without gain ended a training then, ten do today
    theirs = MLPClassifier((100,), n_iter_no_change=2, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = make_pipeline(StandardScaler(), theirs).fit(*sides[0])
    return 100 * float(model.score(*sides[1]))
