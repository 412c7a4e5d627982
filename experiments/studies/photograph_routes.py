"""Measurements of ``routing/photographs``: routes of cut-outs, attacked and changed, and of sample photographs.

EfficientNet-Lite0 with ImageNet weights. No picture has an ImageNet label: what counts is the full network's
prediction. Cut-outs carry one of six kinds of things as label.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from timm.data import create_transform, resolve_model_data_config
from torch import Tensor, nn

from convsmith.interpretation import Routes, find_routes, removal_curve, score_units
from convsmith.interpretation.baselines import baseline_features
from convsmith.interpretation.detector import RouteDetector, detection_report
from convsmith.interpretation.protocol import HARMLESS, Images, attacked, balanced, harmless
from convsmith.interpretation.search import jaccard
from experiments.datasets.backbone import pretrained
from experiments.datasets.photographs import photographs
from experiments.datasets.stamps import KINDS, stamps

EPSILON, ROWS = 8 / 255, 12
ATTACKS = ("ifgsm", "fgsm", "pgd", "targeted ifgsm")
CHANGES = ("clean", *ATTACKS, *HARMLESS)
PUBLISHED, LIGHT = {"mode": "paper"}, {"mode": "paper", "gamma": 0.002}
FRACTIONS = (0.0, 0.005, 0.01, 0.02, 0.05)
#: order of removal: how nodes are scored, and which go first; the first one decides
ORDERS = {
    "routes, light penalty": ("light", "critical"),
    "routes, published": ("clean", "critical"),
    "gradient x activation": ("gradient-times-activation", "critical"),
    "activation": ("activation", "critical"),
    "random": ("light", "random"),
    "least critical": ("light", "least"),
}
#: the last one decides
SEARCHES: dict[str, dict[str, Any]] = {
    "published schedule": PUBLISHED,
    "converged": {"mode": "converged"},
    "converged, layers kept open": {"mode": "converged", "open_layers": True},
}
#: returns the routes of all cut-outs under a change, by name
Done = Callable[[str], Routes]


@dataclass(frozen=True)
class Sizes:
    """Cut-outs of each kind, sample photographs, pictures a kind that detectors learn from, pixels, passes."""

    kind: int = 18
    scenes: int = 15
    few: tuple[int, ...] = (1, 5, 10)
    side: int = 160
    passes: int = 300


QUICK = Sizes(kind=2, scenes=3, few=(1,), side=96, passes=20)


@lru_cache(maxsize=1)
def material(sizes: Sizes) -> tuple[nn.Module, Images, Images]:
    """Return the network, cut-outs labelled by kind, and sample photographs labelled -1."""
    model = pretrained()
    config = {**resolve_model_data_config(model), "input_size": (3, sizes.side, sizes.side)}
    transform: Any = create_transform(**config, is_training=False)
    things = [stamp for stamp in stamps() if not stamp.drawn]
    order = torch.randperm(len(things), generator=torch.Generator().manual_seed(0)).tolist()
    chosen = [thing for name in KINDS for thing in [things[i] for i in order if things[i].kind == name][: sizes.kind]]
    pixels = [transform(thing.composed(256, ground=124)[0]) for thing in chosen]
    labels = torch.tensor([KINDS.index(thing.kind) for thing in chosen])
    views = [transform(picture) for picture in list(photographs().values())[: sizes.scenes]]
    about = config["mean"], config["std"]
    first = torch.arange(len(views)) + len(chosen)
    return (
        model,
        Images(torch.stack(pixels), labels, torch.arange(len(chosen)), *about),
        Images(torch.stack(views), torch.full((len(views),), -1), first, *about),
    )


@lru_cache(maxsize=len(CHANGES))
def changed(sizes: Sizes, change: str) -> Tensor:
    """Return the cut-outs after an attack on their predictions or a harmless change."""
    model, cuts, _ = material(sizes)
    if change == "clean":
        return cuts.images
    if change in HARMLESS:
        return harmless(cuts, change, EPSILON, 0)
    guessed = Images(cuts.images, torch.full_like(cuts.labels, -1), cuts.index, cuts.mean, cuts.std).labelled(model)
    return attacked(model, guessed, change, EPSILON, 0)


def found_routes(folder: Path | None, sizes: Sizes, name: str) -> Routes:
    """Return the published schedule's routes of changed cut-outs or ``"photographs"``, or ``"light"`` ones of both.

    Kept in ``folder``, so that a study that was stopped goes on.
    """
    path = None if folder is None else folder / f"{name.replace(' ', '-')}.safetensors"
    if path is not None and path.is_file():
        return Routes.load(path)
    model, cuts, scenes = material(sizes)
    images, labels = scenes.images, scenes.labels
    if name == "light":
        images, labels = torch.cat([cuts.images, images]), torch.cat([cuts.labels, labels])
    elif name != "photographs":
        images, labels = changed(sizes, name), cuts.labels
    settings = LIGHT if name == "light" else PUBLISHED
    routes = find_routes(model, images, labels=labels, batch_size=ROWS, channels_last=True, **settings)
    return routes if path is None else Routes.load(routes.save(path, storage="float16"))


def removed(done: Done, sizes: Sizes, order: str, seed: int) -> list[int]:
    """Return how many of all pictures keep their prediction at every fraction, then their number."""
    model, cuts, scenes = material(sizes)
    images = torch.cat([cuts.images, scenes.images])
    how, first = ORDERS[order]
    if how == "clean":
        scores = Routes.concatenate([done("clean"), done("photographs")])
    else:
        scores = done(how) if how == "light" else score_units(model, images, how, batch_size=ROWS)
    curve = removal_curve(model, images, scores.prediction, scores, FRACTIONS, order=first, seed=seed, batch_size=ROWS)
    return [*(int(row.sum()) for row in curve.correct), len(images)]


def overlaps(done: Done, seed: int) -> dict[str, Any]:
    """Return by layer and picture the correlation and overlap of gates: own attacked, same kind, other kind."""
    clean, bad = done("clean"), done("ifgsm")
    flipped = (clean.prediction != bad.prediction).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    kinds = clean.labels

    def partner(row: int, alike: bool) -> int:
        fits = ((kinds == kinds[row]) == alike) & (torch.arange(len(kinds)) != row)
        options = fits.nonzero()[:, 0]
        return int(options[torch.randint(len(options), (1,), generator=generator)])

    others = {alike: torch.tensor([partner(row, alike) for row in flipped.tolist()]) for alike in (True, False)}
    found: dict[str, Any] = {"flipped": len(flipped), "images": len(clean), "correlation": {}, "jaccard": {}}
    for gates, moved in zip(clean.gates.values(), bad.gates.values(), strict=True):
        pairs = {"own": moved[flipped], "same": gates[others[True]], "other": gates[others[False]]}
        for name, theirs in pairs.items():
            mine = gates[flipped]
            a, b = (v - v.mean(1, keepdim=True) for v in (mine, theirs))
            alike = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1)).clamp(min=1e-12)
            both = jaccard(mine > 0, theirs > 0)
            found["correlation"].setdefault(name, []).append([round(v, 4) for v in alike.tolist()])
            found["jaccard"].setdefault(name, []).append(round(float(both.mean()), 4))
    return found


def searched(sizes: Sizes, name: str) -> list[dict[str, float]]:
    """Return what a search gives on every sample photograph."""
    model, _, scenes = material(sizes)
    settings = SEARCHES[name] | ({} if name == "published schedule" else {"steps": sizes.passes})
    routes = find_routes(model, scenes.images, batch_size=ROWS, channels_last=True, **settings)
    columns = {
        "critical": routes.sparsity(),
        "kept": routes.kept,
        "open": routes.flags.open.all(1),
        "converged": routes.converged,
        "passes": routes.passes,
        "gamma": routes.gamma,
        "divergence": routes.divergence,
    }
    return [{key: round(float(v[row]), 5) for key, v in columns.items()} for row in range(len(routes))]


def detected(done: Done, sizes: Sizes, feature: str, split: int) -> list[dict[str, Any]]:
    """Fit forests on few pictures a kind and one attack; return the area under the curve on the other pictures."""
    cuts = material(sizes)[1]
    learnt = balanced(cuts.labels, max(sizes.few), split)
    rest = torch.ones(len(cuts.labels), dtype=torch.bool).index_fill(0, learnt, False).nonzero()[:, 0]
    made = {name: done(name) if feature == "routes" else features(sizes, feature, name) for name in CHANGES}
    rows = []
    for count in sizes.few:
        few = learnt[balanced(cuts.labels[learnt], count, split)]
        detector = RouteDetector(seed=split, trees=50).fit(made["clean"][few], made["ifgsm"][few])
        clean = detector.score(made["clean"][rest])
        for name in CHANGES[1:]:
            number = cuts.index[rest].tolist()
            score = detector.score(made[name][rest])
            report = detection_report(clean, score, clean_index=number, adversarial_index=number, seed=split)
            rows.append({"few": count, "change": name, **asdict(report)})
    return rows


@lru_cache(maxsize=3 * len(CHANGES))
def features(sizes: Sizes, feature: str, change: str) -> Routes:
    """Return cheap features of the changed cut-outs."""
    model, cuts, _ = material(sizes)
    return baseline_features(model, changed(sizes, change), feature, index=cuts.index, batch_size=ROWS)
