"""Portable: how far DATA and TARGET lie apart, which classes TARGET holds, whether plain alignment would harm."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from convsmith.adaptation import class_weights, validators
from convsmith.cli.reports.audit_subject import Chapter, Subject, percent, rightly, wilson
from convsmith.data import ImageSplit
from convsmith.report import Figure, Section, Table
from convsmith.report.figures import bars

TITLE = "Portable: another domain"
#: a class with less than this share of the mean class weight is taken to be missing from the target
MISSING = 0.3
#: what is tried -> the method of ``adapt`` that does it
METHODS = {"no alignment": "source-only", "plain alignment": "dann", "class-weighted alignment": "san"}


def run(subject: Subject) -> Chapter:
    """Tell the domains apart, weigh the classes, and compare three heads by a score that needs no target label."""
    source, target = subject.labelled or subject.pictures, subject.target
    if target is None:
        return Chapter(absent="there is no second domain; name one with --target DATA")
    if min(len(source), len(target)) < 16:
        return Chapter(absent="sixteen images of each domain are needed")
    x, y = subject.maps(source).mean(2).double(), subject.maps(target).mean(2).double()
    subject.progress(0, 2, "tell the domains apart")
    apart = _told_apart(x, y, subject.seed)
    text = [
        f"A linear classifier tells an image of {source.description.source} from one of {target.description.source} "
        f"in {percent(apart)} of cases, by the network's own features (50 % would be no difference)."
    ]
    if not source.classes:
        sentence = f"The domains are told apart in {percent(apart)} of cases; no more without source labels."
        return Chapter(sentence, percent(apart), facts={"told apart": apart[0]}, section=_section([sentence, *text]))
    subject.progress(1, 2, "heads on the source")
    present, labels = source.labels.unique(return_inverse=True)  # a sample need not show every class
    source = source.with_labels(labels, tuple(source.classes[k] for k in present.tolist()))
    plain = _head(x, labels, y)
    weights = class_weights(plain)
    importance = weights[labels]
    aligned = (_head(_matched(x, y, share), labels, y) for share in (torch.ones(len(x)), importance))
    found = dict(zip(METHODS, (plain, *aligned), strict=True))
    scores = {name: validators.score("infomax", p) for name, p in found.items()}
    effective = float(weights.sum() ** 2 / (weights**2).sum())
    held = [source.classes[k] for k in range(len(weights)) if float(weights[k]) >= MISSING]
    partial = len(held) < len(weights)
    base = found["no alignment"].argmax(1)
    rows: list[list[Any]] = []
    truth = _truth(source, target)
    for name, p in found.items():
        moved = float((p.argmax(1) != base).double().mean())
        accuracy = None if truth is None else 100 * float((p.argmax(1) == truth).double().mean())
        rows.append([name, float(scores[name]), 100 * moved, accuracy])
    best = max(found, key=lambda name: scores[name] if validators.higher_is_better("infomax") else -scores[name])
    recommended = "class-weighted alignment" if partial and best == "plain alignment" else best
    sentence = (
        f"The domains are told apart in {percent(apart)} of cases; the target seems to hold {len(held)} of "
        f"{len(weights)} source classes, so plain alignment "
        + ("would pull it towards classes it does not have" if partial else "has nothing against it")
        + f". Label-free selection recommends {recommended}."
    )
    if truth is not None:
        top = max(rows, key=lambda row: row[3])
        sentence += f" By the target's labels, which none of this saw, {top[0]} is best ({top[3]:.0f} % right)."
    text += [
        f"Classes the target seems to hold: {', '.join(held[:20]) or 'none'}{', ...' if len(held) > 20 else ''} "
        f"(effective number {effective:.1f} of {len(weights)}, from the predictions of a head trained on the source).",
        "Alignment here matches mean and spread of every feature to the target's, on frozen features; the score "
        "(InfoMax) uses no target label. Training adapts more; this shows the direction in seconds.",
    ]
    command = (
        f"convsmith adapt --source {subject.words['labelled']} --target {subject.words['target']} "
        f"{subject.words['start']} --method {METHODS[recommended]}"
    )
    facts = {
        "told apart": apart[0],
        "effective classes": effective,
        "held": held,
        "scores": {n: float(s) for n, s in scores.items()},
        "recommended": recommended,
        "accuracy": {row[0]: row[3] for row in rows},
    }
    section = _section([sentence, *text], rows, dict(zip(source.classes, weights.tolist(), strict=True)))
    return Chapter(sentence, f"{len(held)} of {len(weights)} classes held", command, facts=facts, section=section)


def _section(text: list[str], rows: Any = (), weights: dict[str, float] | None = None) -> Section:
    columns = ["head on the source", "InfoMax, nats", "target predictions that change, %", "target accuracy, %"]
    tables = [Table(columns, list(rows))] if rows else []
    figures = []
    if weights and len(weights) <= 40:
        svg = bars(weights, xlabel="class weight (1 is the mean)", reference=(MISSING, "taken to be missing below"))
        figures.append(Figure(svg, "How much of each source class the target seems to hold.", "One bar a class."))
    return Section(TITLE, text, tables, figures)


def _truth(source: ImageSplit, target: ImageSplit) -> Tensor | None:
    """Return the target's labels in the source's numbering, for the oracle column."""
    if not target.classes or not set(target.classes) <= set(source.classes):
        return None
    return target.labels.new_tensor([source.classes.index(name) for name in target.classes])[target.labels]


def _told_apart(x: Tensor, y: Tensor, seed: int) -> tuple[float, float, float]:
    """Return the cross-validated accuracy of a linear classifier between equally many rows of both, with interval."""
    count = min(len(x), len(y))
    generator = torch.Generator().manual_seed(seed)
    rows = [part[torch.randperm(len(part), generator=generator)[:count]] for part in (x, y)]
    right = rightly(RidgeClassifier(100.0), torch.cat(rows), np.repeat([0, 1], count), seed)
    return wilson(float(right.sum()), len(right))


def _head(x: Tensor, labels: Tensor, y: Tensor) -> Tensor:
    """Return probabilities [n, K] of a multinomial head, fitted on the source, for the target."""
    head = make_pipeline(StandardScaler(), LogisticRegression(C=1.0, max_iter=200))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        head.fit(x.numpy(), labels.numpy())
    found = torch.zeros(len(y), int(labels.max()) + 1, dtype=torch.float64)
    found[:, torch.as_tensor(head.classes_)] = torch.from_numpy(head.predict_proba(y.numpy())).double()
    return found


def _matched(x: Tensor, y: Tensor, importance: Tensor) -> Tensor:
    """Shift and scale every source feature so that its weighted mean and spread are the target's."""
    share = (importance / importance.sum()).double()[:, None]
    mean = (share * x).sum(0)
    spread = (share * (x - mean) ** 2).sum(0).sqrt().clamp(min=1e-6)
    return (x - mean) / spread * y.std(0).clamp(min=1e-6) + y.mean(0)
