"""A report is a list of sections; a run folder holds them as ``sections/NN-name.json``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Table:
    """``rows`` hold strings, numbers or None, one per column; numbers are right-aligned and rounded for display."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""


@dataclass(frozen=True)
class Figure:
    """``svg`` is one complete ``<svg>`` element (see `convsmith.report.figures`), ``alt`` what it shows in words."""

    svg: str
    caption: str
    alt: str


@dataclass(frozen=True)
class Picture:
    """``png`` is base64 of a PNG file, shown at ``width`` CSS pixels with hard pixel edges if ``pixelated``."""

    png: str
    caption: str
    alt: str
    width: int = 96
    pixelated: bool = True


@dataclass(frozen=True)
class Section:
    """One chapter of a report. ``text`` paragraphs are plain text; ``notes`` are shown as warnings."""

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()
    notes: Sequence[str] = ()

    def save(self, run: Path, name: str) -> Path:
        """Write to ``run/sections/name.json``; ``name`` starts with two digits that give its place (``30-cost``)."""
        path = run / "sections" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(asdict(self), indent=1))
        return path

    @classmethod
    def load(cls, path: Path) -> Section:
        """Read what `save` wrote."""
        value = json.loads(path.read_text())
        return cls(
            title=value["title"],
            text=value["text"],
            tables=[Table(**t) for t in value["tables"]],
            figures=[Figure(**f) for f in value["figures"]],
            pictures=[Picture(**p) for p in value["pictures"]],
            notes=value["notes"],
        )
