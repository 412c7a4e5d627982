"""A report is a list of sections; a run folder holds them as ``sections/NN-name.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from convsmith.errors import InvalidArgument
from convsmith.files import read_json, write_json


@dataclass(frozen=True)
class Table:
    """``rows`` hold strings, numbers or None, one per column; numbers are right-aligned and rounded for display.

    A unit stands in the column's name after a comma. ``folded`` tables open on a click; None folds those of more than
    twelve rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    folded: bool | None = None


@dataclass(frozen=True)
class Figure:
    """``svg`` is one complete ``<svg>`` element (see `convsmith.report.figures`), ``alt`` what it shows in words."""

    svg: str
    caption: str
    alt: str


@dataclass(frozen=True)
class InlineImage:
    """``png`` is base64 of a PNG or JPEG file, shown at ``width`` CSS pixels with hard pixel edges if ``pixelated``."""

    png: str
    caption: str
    alt: str
    width: int = 96
    pixelated: bool = True


@dataclass(frozen=True)
class Section:
    """One chapter of a report: a title, then images, text, figures, tables and commands, in this order.

    ``text`` paragraphs are plain text, the first one is the answer; ``notes`` are shown as warnings; ``commands`` are
    what to type next.
    """

    title: str
    text: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    images: Sequence[InlineImage] = ()
    notes: Sequence[str] = ()
    commands: Sequence[str] = ()

    def save(self, run: Path, name: str) -> Path:
        """Write to ``run/sections/name.json``; ``name`` starts with two digits that give its place (``30-cost``)."""
        path = run / "sections" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Section:
        """Read what `save` wrote."""
        lists = {"text": str, "tables": dict, "figures": dict, "images": dict, "notes": str, "commands": str}
        value = read_json(path, "a report's section", {"title": str, **dict.fromkeys([*lists][:-1], list)})
        value.setdefault("commands", [])
        try:
            for name, kind in lists.items():
                if not all(isinstance(item, kind) for item in value[name]):
                    raise TypeError(f"{name} holds something else than it should")
            return cls(
                title=value["title"],
                text=value["text"],
                tables=[Table(**_table(t)) for t in value["tables"]],
                figures=[Figure(**_texts(f)) for f in value["figures"]],
                images=[InlineImage(**_texts(p)) for p in value["images"]],
                notes=value["notes"],
                commands=value["commands"],
            )
        except TypeError as error:
            rule = "a report's section is damaged"
            raise InvalidArgument(rule, argument=str(path), given=str(error)[:100], hint="run the verb again") from None


def _table(value: dict[str, Any]) -> dict[str, Any]:
    columns, rows = value.get("columns"), value.get("rows")
    if not isinstance(columns, list) or not isinstance(rows, list) or not isinstance(value.get("caption", ""), str):
        raise TypeError("a table has columns and rows")
    if not all(isinstance(row, list) and len(row) == len(columns) for row in rows):
        raise TypeError("every row of a table has one cell a column")
    return value


def _texts(value: dict[str, Any]) -> dict[str, Any]:
    for name, item in value.items():
        kind: type = bool if name == "pixelated" else int if name == "width" else str
        if not isinstance(item, kind):
            raise TypeError(f"{name} must be {kind.__name__}")
    return value
