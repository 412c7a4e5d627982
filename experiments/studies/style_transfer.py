"""What the transfer studies of a pretrained network share: emoji styles, stamps, one recipe, one run as numbers.

The same things drawn by four houses, like Office's cameras: the source is one style with all its classes, the target
another style with the first few classes; or photographs are the source and drawings the target (`STAMPS`). The
pretrained network's last convolution, a bottleneck and a classifier are trained; all arms see the same network, order
and number of updates. Target labels are used for the accuracies in the result and for nothing else (the ablation that
is told the target's classes says so).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.adaptation import METHODS, method_settings
from convsmith.adaptation.methods.method import Domains, DomainTask
from convsmith.adaptation.methods.san import SAN
from convsmith.data import DomainLoader, Loader
from convsmith.data.classes import chosen_classes
from convsmith.inspection.features import Features, extract_features
from convsmith.training import TrainConfig, fit
from experiments.datasets.maps import HeadOnMaps, Maps, divided, emoji_maps, stamp_maps
from experiments.studies.digit_transfer import HALVED, compute_metrics, effects

#: source and target style
DIRECTIONS = {
    "Google to OpenMoji": ("google", "openmoji"),
    "OpenMoji to Facebook": ("openmoji", "facebook"),
    "Twitter to Google": ("twitter", "google"),
}
STAMPS = "photographs to drawings"
DATA = (
    "emoji in four drawing styles, 53 sub-groups of Unicode's list, at most 60 pictures each; EfficientNet-Lite0 "
    "(ImageNet) frozen up to its last convolution, every second row and column of its 7 x 7 map"
)


@dataclass(frozen=True)
class Recipe:
    """The one recipe of every arm."""

    steps: int = 150
    batch: int = 32
    lr: float = 0.05
    evaluate_every: int = 30
    hidden: tuple[int, ...] = (64,)


RECIPE = Recipe()
#: AFN: the paper's pull on the norms is 0.05 at a rate of 0.001; the rate here is 50 times that. AR: half the critic's
#: updates, which take most of its time
SETTINGS: dict[str, dict[str, Any]] = {"afn": {"norm": 0.001}, "ar": {"critic_steps": 100}}


class InformedSAN(SAN):
    """SAN that is told which classes the target holds: an ablation, no method (it uses what nobody has)."""

    shared: tuple[int, ...] = ()

    def before_step(self, step: int) -> None:
        """Set the true weights once they are to act: equal on the target's classes, 0 on the others, mean 1."""
        if self.weighting.due(step):
            truth = torch.zeros(self.classes)
            truth[list(self.shared)] = self.classes / len(self.shared)
            self.weighting.weights.copy_(truth)


@lru_cache(maxsize=2)
def styles(direction: str, stride: int = 2) -> tuple[Maps, Maps]:
    """Return all maps of the source's and of the target's style."""
    if direction == STAMPS:
        return stamp_maps(stride=stride)
    source, target = (emoji_maps(style, stride=stride) for style in DIRECTIONS[direction])
    return source, target


@lru_cache(maxsize=9)
def source_only(direction: str, seed: int, recipe: Recipe = RECIPE) -> tuple[list[Tensor], list[Features]]:
    """Train source-only once for all target sets; return the target logits and the source's features by evaluation."""
    _, target = styles(direction)
    logits: list[Tensor] = []
    seen: list[Features] = []

    def evaluate(model: nn.Module, batches: Any) -> dict[str, float]:
        logits.append(extract_features(model, _loader(target, 1000)).logits)
        seen.append(extract_features(model, batches))
        return {"selection": 0.0}

    train("source-only", direction, target.without_labels(), seed, recipe, evaluate)
    return logits, seen


def _loader(maps: Maps, batch: int, **settings: Any) -> Loader:
    return Loader(maps, batch, **settings)


def train(
    method: str,
    direction: str,
    target: Maps,
    seed: int,
    recipe: Recipe,
    evaluate: Any,
    shared: tuple[int, ...] = (),
    head: Callable[[int], nn.Module] = HeadOnMaps,
    stride: int = 2,
    **settings: Any,
) -> DomainTask:
    """Train one method from the seed's ``head``; with ``shared``, SAN is told the target's classes."""
    source, held_out = divided(styles(direction, stride)[0], 0.2, seed)
    torch.manual_seed(seed)
    model = head(len(source.classes))
    own: dict[str, Any] = {"adversarial": 0.5} if method in HALVED else {}
    if hasattr(method_settings(method, {}), "hidden"):
        own["hidden"] = recipe.hidden
    chosen = method_settings(method, {**own, **SETTINGS.get(method, {}), **settings})
    domains = Domains(_loader(source, 1000), _loader(target, 1000), len(source.classes), recipe.steps)
    torch.manual_seed(seed + 1)
    task = (InformedSAN if shared else METHODS[method])(model, domains, chosen)
    if isinstance(task, InformedSAN):
        task.shared = shared
    task.evaluator = evaluate
    both = DomainLoader(
        *(_loader(side, recipe.batch, seed=seed, shuffle=True, drop_last=True) for side in (source, target))
    )
    config = TrainConfig(
        steps=recipe.steps, lr=recipe.lr, nesterov=False, schedule="inverse", gamma=10 / recipe.steps, seed=seed,
        device="cpu", precision="fp32", evaluate_every=recipe.evaluate_every,
    )  # fmt: skip
    if fit(task, both, config, validation=_loader(held_out, 1000)).interrupted:
        raise KeyboardInterrupt("stopped in the middle of a run, which does not count")
    return task


def run(
    direction: str,
    classes: str,
    method: str,
    seed: int,
    recipe: Recipe = RECIPE,
    *,
    informed: bool = False,
    **settings: Any,
) -> dict[str, Any]:
    """Return one run as JSON: the curve of evaluations, and at the end weights, AUROC and distance from source-only."""
    whole = styles(direction)[1]
    kept = chosen_classes(classes, whole.classes)
    rows = torch.isin(whole.labels, torch.tensor(kept)).nonzero()[:, 0]
    target, labels = whole.subset(rows).without_labels(), whole.labels[rows]
    base_logits, base_seen = source_only(direction, seed, recipe)
    if method == "source-only":
        return {
            "curve": [compute_metrics(z[rows], labels, s) for z, s in zip(base_logits, base_seen, strict=True)],
            "balanced": balanced(base_logits[-1][rows], labels),
        }
    curve = []
    last: list[Tensor] = []

    def evaluate(model: nn.Module, batches: Any) -> dict[str, float]:
        last[:] = [extract_features(model, _loader(target, 1000)).logits]
        curve.append(compute_metrics(last[0], labels, extract_features(model, batches)))
        return {"selection": 0.0}

    task = train(method, direction, target, seed, recipe, evaluate, kept if informed else (), **settings)
    told = effects(task, last[0], base_logits[-1][rows], kept)
    return {"curve": curve, "balanced": balanced(last[0], labels), **told}


def balanced(logits: Tensor, labels: Tensor) -> float:
    """Return accuracy averaged over the classes there are: a collapse onto the largest ones does not raise it."""
    right = (logits.argmax(1) == labels).double()
    return round(float(torch.stack([right[labels == k].mean() for k in labels.unique()]).mean()), 5)
