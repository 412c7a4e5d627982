"""``convsmith report``: build one HTML page from run folders."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.errors import InvalidArgument

EXAMPLES = ("report runs/first", "report runs/first runs/second --out comparison.html")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Build one self-contained HTML page from a run folder, or from several side by side."""

    runs: tuple[str, ...] = option((), "run folders", metavar="RUN", positional=True)
    out: str | None = option(None, "file to write (default: RUN/report.html, runs.html for several)", metavar="FILE")


def run(arguments: Arguments) -> dict[str, Any]:
    """Write the page and name it."""
    from convsmith.report import build_report

    folders = [Path(name) for name in arguments.runs]
    target = Path(arguments.out) if arguments.out is not None else None
    if target is None and len(folders) > 1:
        target = Path("runs.html")
    if target is not None and target.is_dir():
        rule = "the report is one file"
        raise InvalidArgument(rule, argument=f"--out {target}", given="a folder", hint="name a .html file")
    if target is not None and target.is_file() and not _is_page(target):
        rule = "only a page is ever replaced"
        raise InvalidArgument(rule, argument=f"--out {target}", given="a file of another kind", hint="another --out")
    path = build_report(folders, target)
    terminal.say(f"wrote {path}")
    return {"report": str(path)}


def _is_page(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(15).lower() == b"<!doctype html>"
