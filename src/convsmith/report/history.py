"""The learning curves of a run's ``metrics.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convsmith.report.figures import Series, lines
from convsmith.report.section import Figure, Section

_PLACES = {"step", "epoch", "seconds", "lr", "images", "kind", "split"}


def read_history(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a ``metrics.jsonl``, without the half line a killed run may have left at its end."""
    rows = []
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                continue
    return rows


def _curve(rows: Sequence[Mapping[str, Any]], name: str) -> Series | None:
    points = {
        row["step"]: row[name] for row in rows if name in row and "step" in row and isinstance(row[name], int | float)
    }
    if len(points) < 2:
        return None
    steps = sorted(points)
    return Series(steps, [points[step] for step in steps])


def curves(histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> Section | None:
    """Return a section with one figure a quantity, the runs over each other, or None without curves."""
    names = list(
        dict.fromkeys(name for rows in histories.values() for row in rows for name in row if name not in _PLACES)
    )
    figures = []
    for group in _groups(names):
        found: dict[str, Series] = {}
        for run, rows in histories.items():
            for name in group:
                curve = _curve(rows, name)
                if curve is not None:
                    found[f"{run} {name}".strip()] = curve
        if found:
            label = group[0] if len(group) == 1 else group[0].rsplit("/", 1)[-1]
            figures.append(
                Figure(
                    lines(found, xlabel="update", ylabel=label, size=(6.0, 3.2)),
                    f"{label} by update.",
                    f"Curves of {label} over training updates: {', '.join(found)}.",
                )
            )
    return Section("Learning curves", figures=figures) if figures else None


def _groups(names: Sequence[str]) -> list[list[str]]:
    """Put quantities that are one thing measured on several splits (``loss``, ``validation/loss``) into one figure."""
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(name.rsplit("/", 1)[-1], []).append(name)
    return list(groups.values())
