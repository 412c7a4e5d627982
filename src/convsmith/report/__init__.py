"""Reports: sections written by the verbs, rendered into one self-contained HTML page."""

from __future__ import annotations

from convsmith.report.build import build_report, read_run, render
from convsmith.report.machine import conditions
from convsmith.report.section import Figure, InlineImage, Section, Table

__all__ = ["Figure", "InlineImage", "Section", "Table", "build_report", "conditions", "read_run", "render"]
