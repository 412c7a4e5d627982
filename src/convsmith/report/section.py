"""A report is a list of sections; a run folder holds them as ``sections/NN-name.json``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

from convsmith.errors import InvalidArgument
from convsmith.files import read_json, write_json
from convsmith.registry import fitted


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
        return write_json(path, asdict(self))

    @classmethod
    def load(cls, path: Path) -> Section:
        """Read what `save` wrote."""
        try:
            return _read(cls, read_json(path, "a report's section", {"title": str}))
        except TypeError as error:
            rule = "a report's section is damaged"
            raise InvalidArgument(rule, argument=str(path), given=str(error)[:100], hint="run the verb again") from None


def _read(kind: Any, value: Any) -> Any:
    """Return the dataclass ``kind`` of a JSON object, its members too; raise TypeError where one has another type."""
    if not isinstance(value, dict):
        raise TypeError(f"a {kind.__name__} is an object")
    found = dict(value)
    for name, wanted in get_type_hints(kind).items():
        member = (*get_args(wanted), None)[0]
        if name in value and is_dataclass(member) and isinstance(value[name], list):
            found[name] = [_read(member, item) for item in value[name]]
        elif name in value and not fitted(value[name], wanted)[0]:
            raise TypeError(f"{name} holds something else than it should")
    made = kind(**found)
    if isinstance(made, Table) and any(len(row) != len(made.columns) for row in made.rows):
        raise TypeError("every row of a table has one cell a column")
    return made
