"""Tables and figures of a result as Markdown, for the generated pages under ``docs/``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convsmith.report.build import shown

GENERATED = "<!-- generated from the JSON under results/ by `make docs`; edit the study or the suite, not this page -->"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str = "") -> str:
    """Return a Markdown table; numeric columns are right-aligned and cells rounded as in the reports."""
    numeric = [all(row[i] is None or isinstance(row[i], int | float) for row in rows) for i in range(len(columns))]
    lines = [f"*{caption}*", ""] if caption else []
    lines.append("| " + " | ".join(_cell(column) for column in columns) + " |")
    lines.append("|" + "|".join("---:" if right else "---" for right in numeric) + "|")
    lines += ["| " + " | ".join(_cell(shown(cell)) for cell in row) + " |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def standalone(svg: str) -> str:
    """Return a figure as a file of its own: it cannot take its colours from a page, so it brings them."""
    return svg.replace('style="', 'style="color:#1c1e21;background:#ffffff;', 1) + "\n"


def conditions_line(where: Mapping[str, Any]) -> str:
    """Return the conditions of a result as one line."""
    versions = ", ".join(f"{name} {version}" for name, version in where["versions"].items())
    capability = f", {where['capability']}" if "capability" in where else ""  # studies before it was recorded
    return (
        f"{where['machine']} ({where['cpu']}{capability}), device {where['device']}, {where['threads']} threads, "
        f"load {where['load'][0]} at the end, {versions}, commit {where['commit']}, {where['created']}"
    )
