"""One self-contained HTML file from one run folder, or from several side by side."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any

import convsmith
from convsmith.arguments import checked
from convsmith.errors import InvalidArgument
from convsmith.files import read_json, write_text
from convsmith.report.figures import with_own_identifiers
from convsmith.report.history import curves
from convsmith.report.paired import Outcomes, compared, read_outcomes
from convsmith.report.section import Section, Table
from convsmith.training.history import read_history

#: rows above which a table is folded
LONG = 12
#: ``3``, ``-0.5 %``, ``95.6 % (85 to 99)``, ``1.2e-05``, ``nan``
NUMBER = re.compile(r"[+-]?(\d[\d.,]*(e[+-]?\d+)?|nan|inf)( ?(%|points|ms|s|kB|MB))?( \([^a-z]+( to [^a-z]+)?\))?")


def shown(value: Any) -> str:
    """Return a table cell as text: four significant digits, thousands apart, an en dash for nothing."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}" if abs(value) >= 10_000 else str(value)
    if not isinstance(value, float) or not math.isfinite(value):
        return str(value)
    if value == 0:
        return "0"
    if abs(value) >= 10_000:
        return f"{value:,.0f}"
    return f"{value:.2e}" if abs(value) < 0.001 else f"{value:.4g}"


def folds(table: Table) -> bool:
    """Tell whether a table is shown only on a click."""
    return len(table.rows) > LONG if table.folded is None else table.folded


def numeric(table: Table, column: int) -> bool:
    """Tell whether a column holds numbers, alone or with unit and interval, and so stands to the right."""
    cells = [row[column] for row in table.rows if row[column] is not None]
    return bool(cells) and all(not isinstance(cell, bool) and NUMBER.fullmatch(str(cell)) for cell in cells)


@checked
def render(title: str, lead: Sequence[str], facts: Sequence[tuple[str, Any]], sections: Sequence[Section]) -> str:
    """Return the page as HTML; nothing in it points outside the page.

    Examples:
        >>> render("Title", ["One line."], [], []).startswith("<!DOCTYPE html>")
        True
    """
    import jinja2

    numbers = itertools.count(1)
    sections = [
        replace(part, figures=[replace(f, svg=with_own_identifiers(f.svg, next(numbers))) for f in part.figures])
        for part in sections
    ]
    folder = resources.files("convsmith.report")
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    environment.filters |= {"shown": shown, "folds": folds, "numeric": numeric}
    environment.filters["kind"] = lambda data: "jpeg" if data.startswith("/9j/") else "png"
    page = environment.from_string((folder / "page.html").read_text(encoding="utf-8"))
    return page.render(
        title=title,
        lead=list(lead),
        facts=[{"name": name, "value": shown(value)} for name, value in facts],
        chapters=[{"anchor": f"part-{number}", "section": section} for number, section in enumerate(sections, 1)],
        style=(folder / "page.css").read_text(encoding="utf-8"),
        footer=f"convsmith {convsmith.__version__}",
    )


@dataclass(frozen=True)
class Run:
    """What a run folder holds for its report."""

    name: str
    folder: Path
    result: dict[str, Any]
    environment: dict[str, Any]
    config: str
    history: list[dict[str, Any]]
    sections: list[Section]
    outcomes: Outcomes | None

    @property
    def headline(self) -> dict[str, Any]:
        """The numbers on top, by name."""
        return self.result.get("headline", {})


@checked
def read_run(folder: Path | str) -> Run:
    """Read a run folder, or raise `InvalidArgument` when it is none.

    Examples:
        >>> run = read_run(Path("runs/first"))
    """
    folder = Path(folder)
    if not folder.is_dir():
        rule = "a report is made from a run folder, and this is none"
        hint = "name a folder that convsmith train, compress, explain, detect, adapt or demo wrote with --out"
        raise InvalidArgument(rule, argument="report", given=str(folder), hint=hint)
    sections = [Section.load(path) for path in sorted((folder / "sections").glob("*.json"))]
    result = _result(folder / "result.json")
    history = read_history(folder)
    if not (sections or result or history):
        rule = "the folder holds no result.json, history.jsonl or sections"
        hint = "let the run finish its first evaluation, or name another folder"
        raise InvalidArgument(rule, argument="report", given=str(folder), hint=hint)
    config = folder / "config.yaml"
    environment = folder / "environment.json"
    return Run(
        folder.resolve().name,
        folder,
        result,
        read_json(environment, "the record of the environment") if environment.exists() else {},
        config.read_text(encoding="utf-8", errors="replace") if config.exists() else "",
        history,
        sections,
        read_outcomes(folder),
    )


def _result(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    value = read_json(path, "the run's result")
    headline, lead = value.get("headline", {}), value.get("lead", [])
    known = isinstance(headline, dict) and all(not isinstance(item, dict | list) for item in headline.values())
    if not known or not isinstance(lead, list) or not isinstance(value.get("title", ""), str):
        rule = "the run's result is damaged: title is text, lead a list, headline names and numbers"
        raise InvalidArgument(rule, argument=str(path), hint="run the verb again")
    return value


def _flat(value: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, item in value.items():
        name = f"{prefix}{key}"
        if isinstance(item, dict):
            rows += _flat(item, f"{name}.")
        elif isinstance(item, list):
            rows.append((name, ", ".join(map(str, item))))
        else:
            rows.append((name, item))
    return rows


def _conditions(run: Run) -> list[Section]:
    parts = []
    if run.config:
        rows = [[line] for line in run.config.splitlines() if line.strip()]
        text = ["Every setting after flags, file and preset were merged."]
        parts.append(Section("Configuration", text, [Table(["config.yaml"], rows, folded=True)]))
    if run.environment:
        rows = [list(row) for row in _flat(run.environment)]
        parts.append(Section("Environment", tables=[Table(["what", "value"], rows, folded=True)]))
    return parts


@checked
def build_report(runs: Sequence[Path | str], out: Path | str | None = None, title: str | None = None) -> Path:
    """Write the report of one run, or of several side by side, and return its path.

    One run goes to ``<run>/report.html`` unless ``out`` names another file; several need ``out``.

    Examples:
        >>> page = build_report([Path("runs/first")])
    """
    if not runs:
        raise InvalidArgument("a report needs at least one run folder", argument="report", given="none")
    found = [read_run(run) for run in runs]
    if len({run.name for run in found}) < len(found):  # a/first and b/first
        found = [replace(run, name=str(run.folder)) for run in found]
    if len(found) == 1:
        run = found[0]
        sections = [*run.sections, *curves({"": run.history}), *_conditions(run)]
        facts = list(run.headline.items())
        page = render(title or run.result.get("title", run.name), run.result.get("lead", []), facts, sections)
        path = out or run.folder / "report.html"
    else:
        if out is None:
            rule = "a report of several runs needs a file to go to"
            raise InvalidArgument(rule, argument="report", given=len(found), hint="--out FILE.html")
        page = render(title or f"{len(found)} runs side by side", [], [], _side_by_side(found))
        path = Path(out)
    return write_text(path, page)


def _side_by_side(runs: Sequence[Run]) -> list[Section]:
    names = list(dict.fromkeys(name for run in runs for name in run.headline))
    rows = [[run.name, *(run.headline.get(name) for name in names)] for run in runs]
    verdicts = [compared(runs[0].name, runs[0].outcomes, run.name, run.outcomes) for run in runs[1:]]
    sections = [Section("Numbers", [text for text in verdicts if text], [Table(["run", *names], rows)])]
    sections += curves({run.name: run.history for run in runs})
    settings = {run.name: _settings(run.config) for run in runs}
    keys = list(dict.fromkeys(key for values in settings.values() for key in values))
    different = [key for key in keys if len({values.get(key) for values in settings.values()}) > 1]
    if different:
        rows = [[key, *(settings[run.name].get(key) for run in runs)] for key in different]
        sections.append(Section("Settings that differ", [], [Table(["setting", *(run.name for run in runs)], rows)]))
    for run in runs:
        sections += [replace(s, title=f"{run.name}: {s.title}") for s in run.sections]
    return sections


def _settings(config: str) -> dict[str, Any]:
    """Return the settings of ``config.yaml``, lists as text; {} of a file that somebody damaged."""
    import yaml

    try:
        found = yaml.safe_load(config)
    except yaml.YAMLError:
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {str(key): ", ".join(map(str, value)) if isinstance(value, list) else value for key, value in known}
