"""Leaner: what each way of compressing gives in the runtime asked for, from a fast scan without training."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from convsmith import compression
from convsmith.cli.reports.audit_subject import Chapter, OutOfTime, Subject, percent, wilson
from convsmith.compression import runtimes
from convsmith.compression.planning.latency import time_side_by_side
from convsmith.compression.planning.measure import pinned_threads
from convsmith.errors import ConvsmithError
from convsmith.report import Figure, Section, Table
from convsmith.report.figures import scatter

TITLE = "Leaner: compression"
#: what is tried: name, method, settings; cheap ones first, so that a small budget still has an answer
WAYS: tuple[tuple[str, str, dict[str, Any], str], ...] = (
    ("int8", "int8", {}, ""),
    ("low-rank, 99 % energy", "low-rank", {"energy": 0.99, "data_aware": False}, "--set energy=0.99 data_aware=false"),
    ("low-rank, 95 % energy", "low-rank", {"energy": 0.95, "data_aware": False}, "--set energy=0.95 data_aware=false"),
)
#: agreement with the original below which nothing is recommended without training
AGREES = 0.85
#: share of the time below which a network counts as faster
FASTER = 0.95
#: seconds of timing a network
SECONDS = 1.5
OVER = "the budget was used up; a larger --minutes gives an answer"


@dataclass(frozen=True)
class Way:
    """What one way gave beside the original: shares with intervals, one image's time, the weights file."""

    name: str
    command: str
    ratio: tuple[float, float, float]
    milliseconds: float
    kilobytes: float
    agreement: tuple[float, float, float]


def run(subject: Subject) -> Chapter:
    """Compress in every way, time each beside the original, and compare what they answer."""
    images = subject.tensor(subject.pictures)
    if len(images) < 2:
        return Chapter(absent="two images or more are needed")
    if subject.device != "cpu":
        return Chapter(absent="the scan times networks on the CPU; run it with --device cpu")
    example, plain = images[:32], subject.logits.argmax(1)
    began = time.monotonic()
    base = runtimes.runnable(subject.model, images[:1].contiguous(), subject.runtime, threads=1)
    milliseconds = _timed(base, base, images[:1], subject.seed)[1]
    needed = 2 * (time.monotonic() - began)  # no export can be stopped half way: what would not end is not begun
    size, ways = _kilobytes(subject.model, images[:1]), []
    reasons: dict[str, str] = {}
    for done, (name, method, settings, flags) in enumerate(WAYS):
        if not subject.lasts(needed):
            reasons[name] = OVER
            continue
        try:
            subject.progress(done, len(WAYS), name)
            smaller = compression.compress(
                subject.model, method, example=example, progress=subject.progress, **settings
            )
            subject.progress(done, len(WAYS), f"{name} in {subject.runtime}")
            call = runtimes.runnable(smaller, images[:1].contiguous(), subject.runtime, threads=1)
            ratio, took = _timed(base, call, images[:1], subject.seed)
            answers = subject.answers(smaller, images, f"{name}: answers").argmax(1)
            agreement = wilson(int((answers == plain).sum()), len(plain))
            command = f"--method {method} {flags}".strip()
            ways.append(Way(name, command, ratio, took, _kilobytes(smaller, images[:1]), agreement))
        except ConvsmithError as error:
            reasons[name] = OVER if isinstance(error, OutOfTime) else error.rule
    if not ways:
        return Chapter(absent="; ".join(f"{reason} ({name})" for name, reason in reasons.items()))
    good = [w for w in ways if w.ratio[2] < FASTER and w.agreement[0] >= AGREES]
    model, data = subject.words["model"], subject.words["data"]
    if good:
        best = min(good, key=lambda way: way.ratio[1])
        speed = f"{1 / best.ratio[0]:.2f} times as fast ({1 / best.ratio[2]:.2f} to {1 / best.ratio[1]:.2f})"
        sentence = (
            f"{best.name} makes the network {speed} in {subject.runtime} on this machine, its file "
            f"{size / best.kilobytes:.1f} times smaller; it answers like the original on {percent(best.agreement)} of "
            "the images, without training."
        )
        command, number = f"convsmith compress {model} --data {data} {best.command}", speed
    else:
        fastest = min(ways, key=lambda way: way.ratio[0])
        sentence = (
            f"Nothing tried is clearly faster in {subject.runtime} on this machine and close to the original without "
            f"training: the fastest, {fastest.name}, takes {fastest.ratio[0]:.2f} of the time and agrees on "
            f"{percent(fastest.agreement)}. Fine-tuning after compression brings accuracy back."
        )
        command = f"convsmith compress {model} --data {data} --method low-rank --keep-macs 0.5 --finetune-epochs 5"
        number = "nothing tried is faster here"
    facts = {
        "runtime": subject.runtime,
        "images": len(subject.pictures),
        "original, ms": milliseconds,
        "original, kB": size,
        "ways": [{"name": w.name, "time kept": w.ratio, "agreement": w.agreement, "kB": w.kilobytes} for w in ways],
        "not measured": reasons,
    }
    original = ["original", milliseconds, None, size, None]
    section = _section(subject, sentence, ways, original, [f"{n}: {reason}" for n, reason in reasons.items()])
    return Chapter(sentence, number, command, facts=facts, section=section)


def _section(subject: Subject, sentence: str, ways: list[Way], original: list[Any], notes: list[str]) -> Section:
    rows = [original]
    points = {"original": (100.0, 100.0)}
    for way in ways:
        took = f"{way.ratio[0]:.2f} ({way.ratio[1]:.2f} to {way.ratio[2]:.2f})"
        rows.append([way.name, way.milliseconds, took, way.kilobytes, percent(way.agreement)])
        points[way.name] = (100 * way.ratio[0], 100 * way.agreement[0])
    front = [n for n, (x, y) in points.items() if not any(a < x and b >= y for m, (a, b) in points.items() if m != n)]
    columns = ["network", "one image, ms", "time kept (95 % interval)", "file, kB", "same answer (95 %)"]
    svg = scatter(points, xlabel="time of one image, % of the original's", ylabel="same answer, %", front=front)
    return Section(
        TITLE,
        [
            sentence,
            f"Timed call by call in turns with the original: one image, one thread, {subject.runtime}, on this "
            f"machine. Agreement is counted on {len(subject.pictures)} images. Nothing was trained.",
        ],
        [Table(columns, rows)],
        [Figure(svg, "Left is faster, up is closer; the dotted line joins the best.", "A scatter plot.")],
        notes=notes,
    )


def _timed(base: Any, call: Any, image: Tensor, seed: int) -> tuple[tuple[float, float, float], float]:
    """Return the median of the call-by-call time ratio with its bootstrap interval, and the median milliseconds."""
    with pinned_threads(1):
        first, second = time_side_by_side([base, call], image.contiguous(), seconds=SECONDS / 2)
    ratios = np.asarray(second) / np.asarray(first)
    draws = np.random.default_rng(seed).integers(0, len(ratios), (500, len(ratios)))
    low, high = np.percentile(np.median(ratios[draws], 1), [2.5, 97.5])
    return (float(np.median(ratios)), float(low), float(high)), 1e3 * float(np.median(second))


def _kilobytes(model: Any, image: Tensor) -> float:
    """Return the size of the weights file."""
    return compression.size(model, image.shape[1:]).bytes / 1024
