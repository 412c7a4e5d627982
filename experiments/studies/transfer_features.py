"""``transfer/features``: do the target's features lie at the source classes it shares, and at no others?"""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convsmith.adaptation.evaluation.diagnostics import embed, proxy_a_distance
from convsmith.data import Loader
from convsmith.inspection.features import extract_features
from convsmith.report import Figure, Table
from convsmith.report.figures import groups
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_transfer import DATA, DIRECTIONS, RECIPE, digits, target_set, train
from experiments.studies.statistics import interval, paired_difference

METHODS = ("source-only", "dann", "san")
SET = "first-5"


@study(
    "transfer/features",
    claim="SAN aligns target clusters with the shared source classes only; plain adversarial adaptation mixes them "
    "with outlier classes.",
    source="Cao et al., Selective Adversarial Networks, CVPR 2018, section 4.3, t-SNE of A31 to W10",
    rule="Five of ten classes, last step. Each target image is given to the source class with the nearest mean "
    "feature (cosine). Measured: the share that lands at a shared class, and the proxy A-distance of the target "
    "to the shared source classes. Reproduced if in both directions SAN's share is higher than DANN's and than "
    "source-only's and its distance smaller than source-only's, with paired intervals that exclude 0; partly if "
    "its share is higher than DANN's in at least one direction; else not reproduced.",
    data=DATA,
)
def features(running: Study) -> Outcome:
    """Measure shares and distances over seeds, and draw one embedding a method."""
    total = len(DIRECTIONS) * (len(running.seeds) * len(METHODS) + 2)
    share: dict[tuple[str, str], list[float]] = {}
    distance: dict[tuple[str, str], list[float]] = {}
    figures = []
    for seed in running.seeds:
        for direction in DIRECTIONS:
            for method in METHODS:
                cell = running.cell(f"{direction}|{method}|{seed}", partial(measured, direction, method, seed), total)
                share.setdefault((direction, method), []).append(100 * cell["share"])
                distance.setdefault((direction, method), []).append(cell["distance"])
    for direction in DIRECTIONS:
        for method in ("dann", "san"):
            drawn = running.cell(
                f"{direction}|picture|{method}|{running.seeds[0]}",
                partial(picture, direction, method, running.seeds[0]),
                total,
            )
            figures.append(_figure(drawn, direction, method))
    rows: list[list[Any]] = []
    every, some = True, False
    for direction in DIRECTIONS:
        rows += [
            [direction, m, str(interval(share[direction, m])), str(interval(distance[direction, m]))] for m in METHODS
        ]
        over_dann = paired_difference(share[direction, "san"], share[direction, "dann"])
        over_base = paired_difference(share[direction, "san"], share[direction, "source-only"])
        nearer = paired_difference(distance[direction, "source-only"], distance[direction, "san"])
        rows.append([direction, "SAN less DANN", str(over_dann), None])
        rows.append([direction, "SAN less source-only", str(over_base), f"{-nearer.mean:.2f}"])
        every &= over_dann.low > 0 and over_base.low > 0 and nearer.low > 0
        some |= over_dann.low > 0
    verdict: Verdict = "reproduced" if every else "partly" if some else "not reproduced"
    means = [
        f"{d}: {interval(share[d, 'san']).mean:.0f} % with SAN, {interval(share[d, 'dann']).mean:.0f} % with DANN, "
        f"{interval(share[d, 'source-only']).mean:.0f} % with source-only"
        for d in DIRECTIONS
    ]
    columns = ["direction", "method", "target images at a shared class, %", "proxy A-distance to the shared classes"]
    table = Table(columns, rows, "Mean and 95 % interval over seeds.")
    return Outcome(verdict, "Target images nearest to a shared class: " + "; ".join(means) + ".", [table], figures)


def looked_at(direction: str, method: str, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return source features and labels, target features and labels, of one trained network."""
    world = digits(direction)
    rows = torch.isin(world.labels, torch.tensor(target_set(SET))).nonzero()[:, 0]
    target = world.target.subset(rows)

    task = train(method, world, target, seed, RECIPE, lambda *_: {"selection": 0.0})
    source, there = (
        extract_features(task.model, Loader(world.source, 1000)),
        extract_features(task.model, Loader(target, 1000)),
    )
    return source.features, source.labels, there.features, world.labels[rows]


def nearest_classes(features: Tensor, source: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return, for target ``features`` [m, d], the class [m] of the nearest mean of the ``source`` [n, d] by cosine."""
    means = F.normalize(torch.zeros(classes, source.shape[1], dtype=source.dtype).index_add_(0, labels, source))
    cosines = F.normalize(features.to(means)) @ means.T
    # a class without source images has no mean, and is nearest to nothing
    return cosines.masked_fill(torch.bincount(labels, minlength=classes) == 0, -2).argmax(1)


def measured(direction: str, method: str, seed: int) -> dict[str, float]:
    """Return the two numbers of one run."""
    source, labels, target, _ = looked_at(direction, method, seed)
    shared = torch.tensor(target_set(SET))
    nearest = nearest_classes(target, source, labels, 10)
    return {
        "share": round(float(torch.isin(nearest, shared).double().mean()), 5),
        "distance": round(proxy_a_distance(source[torch.isin(labels, shared)], target), 5),
    }


def picture(direction: str, method: str, seed: int) -> dict[str, list[list[float]]]:
    """Return the embedding of one run as three clouds."""
    source, labels, target, _ = looked_at(direction, method, seed)
    left, right, rows, _ = embed(source, target)
    inside = torch.isin(labels[rows], torch.tensor(target_set(SET)))
    clouds = {"source, shared classes": left[inside], "source, other classes": left[~inside], "target": right}
    return {name: [[round(float(v), 2) for v in p] for p in cloud] for name, cloud in clouds.items()}


def _figure(drawn: dict[str, list[list[float]]], direction: str, method: str) -> Figure:
    clouds = {name: np.array(points) for name, points in drawn.items()}
    return Figure(
        svg=groups(clouds, xlabel="t-SNE, first axis", ylabel="t-SNE, second axis"),
        caption=f"{direction}, {method}: features of source and target (digits 0-4) after training, first seed.",
        alt=f"Points of source images of shared and other classes, and of target images, {direction}, {method}.",
    )
