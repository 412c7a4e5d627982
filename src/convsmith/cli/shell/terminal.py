"""What people see: text and tables on stdout, complaints on stderr, colour only on a terminal."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO


def is_main_process() -> bool:
    """Tell whether this process speaks: the first of those that torchrun or accelerate launched, or the only one."""
    return os.environ.get("RANK", "0") == "0"


def processes() -> int:
    """Return how many processes torchrun or accelerate launched, 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def open_streams() -> None:
    """Let stdout and stderr take every text, one that was closed before the start included."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, Path(os.devnull).open("w"))  # noqa: SIM115  (it is open as long as the process)
        elif getattr(stream, "errors", None) == "strict" and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name beyond the terminal's letters


def write(stream: TextIO, *lines: str) -> None:
    """Print lines; where nobody reads any more, as behind ``| head``, the work goes on unheard."""
    try:
        print(*lines, sep="\n", file=stream, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


def say(*lines: str) -> None:
    """Print lines on stdout, from the first process only."""
    if is_main_process():
        write(sys.stdout, *lines)


def complain(kind: str, text: str, *, everywhere: bool = False) -> None:
    """Print ``convsmith: kind: text`` on stderr, with a red head on a terminal.

    ``everywhere``: from every process, with its number: what ends one need not be known to the first.
    """
    if not is_main_process() and not everywhere:
        return
    if everywhere and (world := processes()) > 1:
        kind = f"{kind} in process {os.environ.get('RANK', '0')} of {world}"
    text = text.strip()
    if sys.stderr.isatty():
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True).print(Text.assemble((f"{kind}: ", "bold red"), text))
    else:
        write(sys.stderr, f"convsmith: {kind}: {text}" if text else f"convsmith: {kind}")


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print an aligned table, numbers to the right; on a terminal long cells wrap, in a pipe a row stays one line."""
    if not is_main_process():
        return
    cells = [[shown(value) for value in row] for row in rows]
    numeric = [
        bool(rows) and all(isinstance(row[c], (int, float, type(None))) for row in rows) for c in range(len(columns))
    ]
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        drawn = Table(box=None, pad_edge=False, header_style="bold")
        for name, right in zip(columns, numeric, strict=True):
            drawn.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in cells:
            drawn.add_row(*(Text(cell) for cell in row))
        Console().print(drawn)
        return
    widths = [max(len(name), *(len(row[c]) for row in cells), 0) for c, name in enumerate(columns)]
    for row in [list(columns), *cells]:
        padded = [
            cell.rjust(w) if right else cell.ljust(w) for cell, w, right in zip(row, widths, numeric, strict=True)
        ]
        write(sys.stdout, "  ".join(padded).rstrip())


def shown(value: Any) -> str:
    """Return a cell's text: numbers short, None as a dash."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value)
