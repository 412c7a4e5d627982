"""Scores of an adapted model that need no target labels, and the oracle, which does and says so.

Entropy (Morerio et al., ICLR 2018); InfoMax (as in Musgrave et al., arXiv 2111.15672); SND (Saito et al., ICCV 2021,
soft neighbourhood density); BNM (Cui et al., CVPR 2020, nuclear norm); DEV (You et al., ICML 2019, eq. 8 and 9). How
they fare under partial label sets: Salvador et al., A Reproducible and Realistic Evaluation of Partial Domain
Adaptation, TMLR 2023.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from convsmith.adaptation.losses import operands
from convsmith.errors import InvalidArgument, close_matches
from convsmith.registry import Registry

#: a candidate whose source-validation accuracy is below this share of source-only's is never chosen
GUARD = 0.9


@dataclass(frozen=True)
class Evidence:
    """What a validator may look at. Shapes: probabilities [n, K], features [n, d], labels [n].

    ``source_*`` come from held-out source images, ``source_training_features`` from those trained on; ``target_labels``
    are for the oracle alone.
    """

    target_probabilities: Tensor | None = None
    target_features: Tensor | None = None
    source_probabilities: Tensor | None = None
    source_features: Tensor | None = None
    source_labels: Tensor | None = None
    source_training_features: Tensor | None = None
    target_labels: Tensor | None = None


#: each takes what it needs, in the order of its trait ``needs``; floating-point evidence comes in float64
VALIDATORS: Registry[Callable[..., float]] = Registry("validator", "convsmith.adaptation.evaluation")


def available() -> list[str]:
    """Return the names of all validators."""
    return VALIDATORS.names()


def score(name: str, target_probabilities: Tensor | None = None, **evidence: Tensor | None) -> float:
    """Return the validator's number exactly as it is published (for some, lower is better: `higher_is_better`).

    Args:
        name: one of `available()`.
        target_probabilities: [n, K].
        evidence: any other field of `Evidence` by name.

    Raises:
        InvalidArgument: unknown validator, or what it needs is missing, empty or not finite.
    """
    known = [f.name for f in fields(Evidence)]
    for key in evidence:
        if key not in known:
            raise InvalidArgument("no evidence has this name", given=repr(key), hint=close_matches(key, known))
    return measure(name, Evidence(target_probabilities=target_probabilities, **evidence))


def measure(name: str, evidence: Evidence) -> float:
    """Return the validator's number for ``evidence``; see `score`."""
    entry = VALIDATORS.entry(name)
    given: list[Tensor] = []
    sizes: dict[str, tuple[str, int]] = {}
    for need in entry.traits["needs"]:
        value = getattr(evidence, need)
        if value is None:
            raise InvalidArgument(f"the validator {name!r} needs {need}", argument=need, given="none")
        _check(name, need, value)
        given.append(value.detach().double() if value.is_floating_point() else value)
        # what speaks of the same images has as many rows; what is compared has as many columns
        keys = [f"rows of {need.split('_')[0]}" if "training" not in need else "rows of source training"]
        if not need.endswith("labels"):
            keys.append(f"columns of {need.split('_')[-1]}")
        for key, count in zip(keys, value.shape, strict=False):
            other, number = sizes.setdefault(key, (need, count))
            if number != count:
                rule = f"{need} and {other} have the same {key.split()[0]}"
                raise InvalidArgument(rule, argument=need, given=f"{count} and {number}")
    return float(entry.value(*given))


def _check(validator: str, name: str, value: Any) -> None:
    """Refuse evidence of a wrong kind, shape or range."""
    if name.endswith("labels"):
        operands.labels(name, value)
    else:
        operands.matrix(name, value)
        if not bool(torch.isfinite(value).all()):
            raise InvalidArgument(f"{name} holds values that are not finite", argument=name)
    if len(value) == 0:
        raise InvalidArgument(f"the validator {validator!r} needs {name}", argument=name, given="0 images")
    if name.endswith("probabilities"):
        p = value.detach()
        off = max(float(-p.min()), float((p.double().sum(1) - 1).abs().max()))
        if off > 1e-4 + 2 * torch.finfo(value.dtype).eps:
            rule = f"{name} are probabilities: every row sums to 1"
            given = f"rows from {float(value.sum(1).min()):.4g} to {float(value.sum(1).max()):.4g}"
            raise InvalidArgument(rule, argument=name, given=given, hint="logits.softmax(1)")


def higher_is_better(name: str) -> bool:
    """Say in which direction the validator's number points."""
    return bool(VALIDATORS.entry(name).traits["higher_is_better"])


def oriented(name: str, value: float) -> float:
    """Return ``value`` with its sign turned so that higher is better."""
    return value if higher_is_better(name) else -value


def guarded(source_accuracy: float, reference: float | None) -> bool:
    """Say whether a candidate may be chosen: its source accuracy is at least `GUARD` of source-only's."""
    return reference is None or source_accuracy >= GUARD * reference


def _register(name: str, *needs: str, higher: bool = True, labels: bool = False) -> Callable:
    return VALIDATORS.register(name, needs=needs, higher_is_better=higher, uses_target_labels=labels)


@_register("entropy", "target_probabilities", higher=False)
def mean_entropy(p: Tensor) -> float:
    """Mean entropy of the target predictions (lower is better); prefers collapsed, confident runs."""
    return float(torch.special.entr(p).sum(1).mean())


@_register("infomax", "target_probabilities", higher=False)
def infomax(p: Tensor) -> float:
    """Mean entropy minus the entropy of the mean (lower is better).

    The diversity term pushes towards all K classes: biased where the target holds fewer.
    """
    return float(torch.special.entr(p).sum(1).mean() - torch.special.entr(p.mean(0)).sum())


@_register("snd", "target_probabilities")
def soft_neighbourhood_density(p: Tensor) -> float:
    """SND: mean entropy of each prediction's softmax over its neighbours (higher is better), temperature 0.05."""
    p = F.normalize(p, dim=1)
    if len(p) < 2:
        raise InvalidArgument("neighbours need two target images", argument="snd", given=f"{len(p)} images")
    total = 0.0
    for first in range(0, len(p), 2048):  # rows in parts: n^2 does not fit for large n
        rows = p[first : first + 2048] @ p.T / 0.05
        rows[torch.arange(len(rows)), first + torch.arange(len(rows))] = -math.inf
        total += float(torch.special.entr(rows.softmax(1)).sum())
    return total / len(p)


@_register("bnm", "target_probabilities")
def batch_nuclear_norm(p: Tensor) -> float:
    """Nuclear norm of the prediction matrix over n (higher is better); rewards all K classes, as InfoMax does."""
    return float(torch.linalg.matrix_norm(p, ord="nuc")) / len(p)


@_register("source-accuracy", "source_probabilities", "source_labels")
def source_accuracy(p: Tensor, labels: Tensor) -> float:
    """Accuracy on held-out source images (higher is better)."""
    return float((p.argmax(1) == labels).double().mean())


@_register(
    "dev",
    "source_training_features",
    "target_features",
    "source_features",
    "source_probabilities",
    "source_labels",
    higher=False,
)
def deep_embedded_validation(training: Tensor, target: Tensor, source: Tensor, p: Tensor, labels: Tensor) -> float:
    """DEV: held-out source error weighted by the density ratio of the features (lower is better).

    ``mean(w e) + eta mean(w) - eta`` with ``eta = -cov(w e, w) / var(w)`` and ``w = n_s/n_t * p(target) / p(source)``.
    """
    return dev_risk(density_ratio(training, target, source), (p.argmax(1) != labels).double())


def dev_risk(weights: Tensor, error: Tensor) -> float:
    """Return DEV's risk from density-ratio ``weights`` [n] and ``error`` [n] (You et al., eq. 9, divisor n - 1)."""
    if len(weights) < 2:
        raise InvalidArgument("DEV needs two held-out source images", given=f"{len(weights)} images")
    weighted = weights * error
    variance = weights.var()
    if float(variance) == 0.0:
        return float(weighted.mean())
    eta = -((weighted - weighted.mean()) * (weights - weights.mean())).sum() / (len(weights) - 1) / variance
    return float(weighted.mean() + eta * weights.mean() - eta)


def density_ratio(
    source_training: Tensor, target: Tensor, at: Tensor, *, limit: int = 3000, inverse_penalty: float | None = None
) -> Tensor:
    """Return ``n_s/n_t * p(target | f) / p(source | f)`` at features ``at`` [n, d] from a logistic domain classifier.

    At most ``limit`` images a side are used (evenly spaced ones). The ``inverse_penalty`` (scikit-learn's C) is chosen
    from 10^-2 .. 10^2 by three-fold cross-validation if it is not given, as Salvador et al. choose theirs; the folds
    are shuffled, since rows sorted by class would leave whole classes out of a fold. Rows are sorted by their values
    first, so that the order they come in decides nothing.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold

    source, other = (_sorted(side)[:: max(1, math.ceil(len(side) / limit))] for side in (source_training, target))
    both = torch.cat([source, other])
    mean, std = both.mean(0), both.std(0).clamp_min(1e-8)
    labels = torch.cat([torch.zeros(len(source)), torch.ones(len(other))])
    model: Any = LogisticRegression(C=inverse_penalty or 1.0, max_iter=500)
    if inverse_penalty is None:
        if min(len(source), len(other)) < 3:
            rule, given = "the domain classifier needs three images a side", f"{len(source)} and {len(other)} images"
            raise InvalidArgument(rule, argument="source_training_features, target_features", given=given)
        folds = StratifiedKFold(3, shuffle=True, random_state=0)
        model = GridSearchCV(model, {"C": [0.01, 0.1, 1.0, 10.0, 100.0]}, cv=folds, scoring="neg_log_loss")
    model.fit(((both - mean) / std).cpu().numpy(), labels.numpy())
    p = torch.from_numpy(model.predict_proba(((at - mean) / std).cpu().numpy()))
    return len(source) / len(other) * p[:, 1] / p[:, 0].clamp_min(1e-12)


def _sorted(rows: Tensor) -> Tensor:
    """Return ``rows`` [n, d] in the order of their values, the first column first."""
    order = np.lexsort(rows.detach().cpu().numpy().T[::-1])
    return rows[torch.from_numpy(order).to(rows.device)]


@_register("oracle", "target_probabilities", "target_labels", labels=True)
def oracle(p: Tensor, labels: Tensor) -> float:
    """Target accuracy itself (higher is better): uses target labels, for upper bounds only."""
    return float((p.argmax(1) == labels).double().mean())
