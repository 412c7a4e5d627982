"""Explainable: the channels that carry a dozen predictions, and those that nothing needs."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from convsmith.cli.reports.audit_subject import Chapter, Subject
from convsmith.cli.reports.explain_report import ALL, maps_of
from convsmith.cli.shell.progress import pass_seconds
from convsmith.interpretation import find_routes, overlay
from convsmith.report import InlineImage, Section, Table
from convsmith.report.figures import photo, small

TITLE = "Explainable: what carries a prediction"
#: half of the passes are those of the blanks beside the images
IMAGES, PASSES = 12, 100


def run(subject: Subject) -> Chapter:
    """Find routes of a dozen images, one a group, and overlay what they look at."""
    rows = _different(subject, IMAGES)
    images = subject.tensor(subject.pictures)[rows]
    found, took = [], PASSES * pass_seconds(subject.model, images[:1])
    size = 4 if subject.lasts(8 * took) else 1  # a few at a time: what the budget does not reach is left out, not lost
    for start in range(0, len(rows), size):
        if not subject.lasts(1.2 * took):
            break
        subject.progress(start, len(rows), "routes")
        began, batch = time.monotonic(), images[start : start + size]
        with torch.no_grad():
            routes = find_routes(subject.model, batch, steps=PASSES // 2, batch_size=size, open_layers=True)
        found.append((batch, routes, maps_of(subject.model, batch, routes)))
        took = time.monotonic() - began
    if not found:
        return Chapter(absent=f"one image needs {took:.0f} s for its {PASSES} passes; a larger --minutes")
    pictures, shares, table, closed = [], [], [], 0
    needed = torch.zeros(found[0][1].total, dtype=torch.bool)
    for start, (batch, routes, heat) in zip(range(0, len(rows), size), found, strict=False):
        critical = torch.cat([gate > 0 for gate in routes.gates.values()], 1).cpu()
        pixels = subject.pixels(batch)
        shown = pixels if heat is None else overlay(pixels, heat)
        for k in range(len(batch)):
            share = float(routes.sparsity()[k])
            smaller = bool(routes.kept[k]) and share < ALL
            # a route that closes every way from the image says the same whatever the image shows
            carried = smaller and bool(routes.flags.open[k].any())
            closed += smaller and not carried
            if carried:
                shares.append(share)
                needed |= critical[k]
            first, second = subject.name(int(routes.prediction[k])), subject.name(int(routes.runner_up[k]))
            name, sure = Path(subject.pictures.name(rows[start + k])).name, float(routes.confidence[k])
            told = f"{share:.0%} of channels carry it" if carried else "no route found"
            caption = f"{first}, {sure:.0%} (then {second}): {told}"
            pictures.append(InlineImage(photo(shown[k].numpy()), caption, name, width=200, pixelated=small(pixels)))
            table.append([name, first, 100 * sure, second, 100 * share if carried else None])
    tried = len(table)
    if not shares and not closed:
        return Chapter(absent=f"no smaller route was found for any of {tried} images in {PASSES} passes")
    facts: dict[str, Any] = {"images": tried, "routes": len(shares), "closed": closed}
    constant = (
        f" In {closed} of {tried} the search ended with channels that say the same whatever the image shows: these "
        "explain nothing about it and are not counted."
        if closed
        else ""
    )
    if len(shares) > 2:
        middle, unused = sorted(shares)[len(shares) // 2], float((~needed).double().mean())
        facts |= {"critical": middle, "unused": unused}
        span = f"{100 * min(shares):.0f} to {100 * max(shares):.0f}"
        number = f"{100 * middle:.0f} % ({span}) of channels carry a prediction"
        sentence = (
            f"{100 * middle:.0f} % of the channels carry the median prediction ({len(shares)} of {tried} images have a "
            f"route); {100 * unused:.0f} % of {len(needed)} channels are needed by none of these.{constant}"
        )
    else:
        number = f"a route for {len(shares)} of {tried} images"
        sentence = f"{PASSES} passes found a route from {len(shares)} of {tried} images to their predictions.{constant}"
    places = "Warm colours mark places that speak for the predicted class."
    if found[0][2] is None:
        places = "There are no heat maps: no layer of this network holds a map of channels."
    section = Section(
        TITLE,
        [sentence, f"{places} A route is what a search of {PASSES} passes leaves open while the prediction stays."],
        [Table(["image", "prediction", "confidence, %", "runner-up", "critical channels, %"], table, folded=True)],
        images=pictures,
    )
    data = subject.words["data"]
    command = f"convsmith explain {subject.words['model']} --data {data} --limit 50"
    return Chapter(sentence, number, command, facts=facts, section=section)


def _different(subject: Subject, most: int) -> list[int]:
    """Return rows of the images, one of each class or group first."""
    groups = subject.pictures.labels.tolist() if subject.pictures.classes else list(subject.groups)
    first = [groups.index(g) for g in dict.fromkeys(groups)]
    rest = [i for i in range(len(groups)) if i not in first]
    return (first + rest)[:most]
