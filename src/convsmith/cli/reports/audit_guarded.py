"""Guarded: how many predictions an invisible change flips, and what a detector catches of it."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from convsmith.cli.reports.audit_subject import Chapter, Subject, interval_bars, percent, wilson
from convsmith.errors import ConvsmithError
from convsmith.interpretation import DetectionReport, RouteDetector, attack, baseline_features, detection_report
from convsmith.report import InlineImage, Section, Table
from convsmith.report.figures import photo, small

TITLE = "Guarded: adversarial inputs"
SIZES = (2, 8)
IMAGES, STEPS = 32, 5


def run(subject: Subject) -> Chapter:
    """Attack, count flips, fit a small detector on half of the images and score it on the other half."""
    about, images = subject.loaded.preprocessing, subject.tensor(subject.pictures)[:IMAGES]
    labels = subject.logits[: len(images)].argmax(1).to(images.device)
    parts: dict[int, list[Tensor]] = {size: [] for size in SIZES}
    took = 0.0
    for start in range(0, len(images), 4):  # in fours: what the budget does not reach is left out, not lost
        if start and not subject.lasts(2 * took):
            images, labels = images[:start], labels[:start]
            break
        began, rows = time.monotonic(), slice(start, start + 4)
        for size in SIZES:
            subject.progress(start, len(images), f"attack of {size}/255")
            parts[size].append(
                attack(
                    subject.model, images[rows], labels[rows], "pgd", size / 255,
                    mean=about.mean, std=about.std, steps=STEPS, seed=subject.seed,
                )
            )  # fmt: skip
        took = time.monotonic() - began
    moved = {size: torch.cat(part) for size, part in parts.items()}
    answers = {size: subject.answers(subject.model, moved[size], "answers").argmax(1) for size in SIZES}
    flips = {size: wilson(int((answers[size] != labels.cpu()).sum()), len(labels)) for size in SIZES}
    found, scored, reason = _detector(subject, images, moved[SIZES[-1]])
    few, many = (percent(flips[size]) for size in SIZES)
    sentence = f"A change of 2/255 a pixel, which nobody sees, flips {few} of predictions, 8/255 flips {many}. "
    if found is None:
        sentence += f"No detector was fitted: {reason}."
    else:
        caught = wilson(found.hit_rate * scored, scored)
        good = found.auroc_low > 0.6
        sentence += f"A detector on activations catches {percent(caught)} of them at 5 % false alarms"
        sentence += "." if good else ": do not use this detector."
    shown = subject.pixels(torch.cat([images[:1], moved[SIZES[-1]][:1]]))
    names = [subject.name(int(labels[0])), subject.name(int(answers[SIZES[-1]][0]))]
    pictures = [
        InlineImage(photo(one.numpy()), f"{kind}: {name}", f"{kind} image", width=200, pixelated=small(one))
        for one, kind, name in zip(shown, ("original", "changed by 8/255"), names, strict=True)
    ]
    shares = {f"{size}/255": share for size, share in flips.items()}
    section = Section(
        TITLE,
        [
            sentence,
            f"Projected gradient, {STEPS} steps, on {len(images)} images; intervals are over images. The detector "
            "learns from clean and attacked images of one half and is scored on the other half. It is no defence "
            "against somebody who knows it.",
        ],
        [Table(["largest change", "predictions flipped"], [[name, percent(share)] for name, share in shares.items()])],
        [interval_bars(shares, "predictions flipped, %", "Predictions flipped by size of the change.")],
        pictures,
    )
    command = f"convsmith detect fit {subject.words['model']} --data {subject.words['data']}"
    facts: dict[str, Any] = {f"flipped at {name}": share[0] for name, share in shares.items()}
    if found is not None:
        facts |= {"detector AUROC": found.auroc, "caught": caught}
    return Chapter(sentence, f"{few} flipped by 2/255", command, facts=facts, section=section)


def _detector(subject: Subject, images: Tensor, moved: Tensor) -> tuple[DetectionReport | None, int, str]:
    """Fit on clean and changed images of half of the groups, score the others: report, images, or why not."""
    groups = torch.tensor(list(subject.groups)[: len(images)])
    known = groups.unique()
    if len(known) < 8:
        return None, 0, "eight different images or more are needed"
    half = torch.isin(groups, known[::2])
    try:
        subject.progress(0, 1, "detector")
        clean, changed = (baseline_features(subject.model, x, "activations", index=groups) for x in (images, moved))
        detector = RouteDetector(seed=subject.seed, trees=100).fit(clean[half], changed[half])
        scores = [detector.score(routes[~half]) for routes in (clean, changed)]
    except ConvsmithError as error:
        return None, 0, error.rule
    names = groups[~half].tolist()
    report = detection_report(*scores, clean_index=names, adversarial_index=names, seed=subject.seed)
    return report, len(names), ""
