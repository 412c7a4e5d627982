"""The log of a run: rows in memory, ``history.jsonl`` and ``history.csv`` in the run folder."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from convsmith.files import write_csv, write_text


class History:
    """Rows in the order they came. Each has ``kind`` (``"train"`` or ``"evaluation"``), ``step``, ``epoch``.

    The CSV file has one column per name seen; it is rewritten when a new name appears and appended to otherwise.
    A number that is not finite is ``null`` in JSONL and empty in CSV.
    """

    def __init__(self, run: Path | None, rows: list[dict[str, Any]] | None = None) -> None:
        self.rows = rows if rows is not None else []
        self.run = run
        self._columns: list[str] = []
        if run is not None:
            write_text(run / "history.jsonl", "".join(_line(row) for row in self.rows))
            self._write_csv()

    def add(self, row: dict[str, Any]) -> None:
        """Append a row to memory and to both files."""
        self.rows.append(row)
        if self.run is None:
            return
        with (self.run / "history.jsonl").open("a") as file:
            file.write(_line(row))
        if any(name not in self._columns for name in row):
            self._write_csv()
        else:
            with (self.run / "history.csv").open("a", newline="") as file:
                csv.DictWriter(file, self._columns).writerow(_finite(row))

    def _write_csv(self) -> None:
        assert self.run is not None
        self._columns = list(dict.fromkeys(name for row in self.rows for name in row))
        rows = ([_finite(row).get(name) for name in self._columns] for row in self.rows)
        write_csv(self.run / "history.csv", [self._columns, *rows])


def read_history(run: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """Read a run's rows, those up to a step if one is given; a line cut off by a kill is left out."""
    file = run / "history.jsonl"
    rows = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if isinstance(step, int) and (up_to is None or step <= up_to):
            rows.append(row)
    return rows


def _finite(row: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in row.items()}


def _line(row: dict[str, Any]) -> str:
    return json.dumps(_finite(row), allow_nan=False) + "\n"
