"""The learning curves of a run's history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convsmith.report.figures import Series, lines
from convsmith.report.section import Figure, Section

_PLACES = {"step", "epoch", "seconds", "lr", "images", "kind"}
#: quantities that share a figure, because they are one thing measured in two places or in one unit
_TOGETHER = (("loss", "cross_entropy"), ("accuracy", "top5"))
_WORDS = {"ece": "calibration error (ECE)", "top5": "top-5 accuracy", "cross_entropy": "cross-entropy"}

Rows = Sequence[Mapping[str, Any]]


def _curve(rows: Rows, kind: str, name: str) -> Series | None:
    points = {
        row["step"]: row[name]
        for row in rows
        if row.get("kind", kind) == kind and isinstance(row.get(name), int | float) and "step" in row
    }
    if len(points) < 2:
        return None
    steps = sorted(points)
    return Series(steps, [points[step] for step in steps])


def curves(histories: Mapping[str, Rows]) -> list[Section]:
    """Return a section with one figure a quantity, the runs over each other; none without curves.

    ``histories`` maps a run's name (empty for the only one) to its rows as `convsmith.training` logs them.
    """
    groups: dict[str, list[tuple[str, str]]] = {}
    every = (row for rows in histories.values() for row in rows)
    logged = ((row.get("kind", "train"), name) for row in every for name in row if name not in _PLACES)
    for kind, name in dict.fromkeys(logged):
        label = next((group[0] for group in _TOGETHER if name in group), name)
        groups.setdefault(label, []).append((kind, name))
    figures = []
    for label, members in groups.items():
        found: dict[str, Series] = {}
        for run, rows in histories.items():
            for kind, name in members:
                curve = _curve(rows, kind, name)
                if curve is not None:
                    said = _WORDS.get(name, name).replace("_", " ")
                    measured = f"{'validation' if kind == 'evaluation' else 'training'} {said}"
                    found[f"{run}: {measured}" if run else measured] = curve
        if found:
            label = _WORDS.get(label, label).replace("_", " ")
            drawn = ", ".join(found)
            svg = lines(found, xlabel="update", counted=True, ylabel=label, size=(6.0, 3.2))
            caption, alt = f"{drawn[0].upper()}{drawn[1:]}, by update.", f"Curves of {label} over training updates."
            figures.append(Figure(svg, caption, alt))
    return [Section("Learning curves", figures=figures)] if figures else []
