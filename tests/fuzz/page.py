"""``docs/reliability.md``: a section for each way in which reliability is measured, written by what measured."""

from __future__ import annotations

import platform
from pathlib import Path

import torch

TITLE = "# Reliability: what fuzzed input and kills lead to"


def environment() -> str:
    """Return what the counts were made with."""
    return (
        f"torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}, "
        f"CPU capability {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} thread"
    )


def write_section(path: Path, heading: str, text: str) -> None:
    """Write ``text`` under ``heading`` in the page, in the place of what stood there."""
    there = path.read_text(encoding="utf-8") if path.is_file() else TITLE
    _, *parts = ("\n" + there).split("\n## ")
    sections = dict(part.split("\n", 1) for part in parts)
    sections[heading] = f"\n{text}"
    whole = [TITLE, *(f"## {name}\n\n{body.strip()}" for name, body in sections.items())]
    path.write_text("\n\n".join(whole) + "\n", encoding="utf-8")
