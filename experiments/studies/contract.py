"""What every study shares: a claim with its source and its rule, cells that survive an interruption, a verdict.

A study is a function of a `Study` that returns an `Outcome`. It asks for its numbers through ``study.cell(key, work)``:
a finished cell is read back from disk, so a run stopped by Ctrl-C goes on where it was. The rule that turns numbers
into a verdict is written in the decorator, before anything runs, and the function applies it.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from convsmith.files import whole_lines, write_json
from convsmith.registry import Registry
from convsmith.report.machine import conditions
from convsmith.report.section import Figure, Table

Verdict = Literal["reproduced", "partly", "not reproduced"]
STUDIES: Registry[Callable[[Study], Outcome]] = Registry("study", "experiments.studies")


@dataclass(frozen=True)
class Outcome:
    """What a study found: ``summary`` is one sentence with the deciding numbers and their intervals."""

    verdict: Verdict
    summary: str
    tables: Sequence[Table] = ()
    figures: Sequence[Figure] = ()
    notes: Sequence[str] = ()


@dataclass
class Study:
    """The conditions a study runs under, and its memory of finished cells.

    Attributes:
        name: ``pillar/claim``.
        quick: the small form for ``make studies`` (fewer seeds, fewer updates); the JSON says so.
        seeds: the seeds to use, in order; every arm of a comparison uses all of them.
        device: where to compute.
        results: the folder of the results, for a study that reads what another one found.
    """

    name: str
    quick: bool
    seeds: list[int]
    device: str
    cells_file: Path | None = None
    progress: Callable[[int, int, str], None] | None = None
    results: Path | None = None
    cells: dict[str, Any] = field(default_factory=dict)
    _asked: int = 0

    def __post_init__(self) -> None:
        if self.cells_file is not None:
            self.cells = {cell["key"]: cell for cell in map(json.loads, whole_lines(self.cells_file))}

    def cell(self, key: str, work: Callable[[], Any], total: int = 0) -> Any:
        """Return the JSON value of ``work()`` under ``key``, from disk if an earlier run finished it.

        ``total`` is the number of cells the study will ask for, for the progress bar.
        """
        self._asked += 1
        if key not in self.cells:
            begin = time.process_time()  # of the processor: on a shared machine elapsed time tells of the others
            value = work()
            cell = {"key": key, "seconds": round(time.process_time() - begin, 3), "value": value}
            line = json.dumps(cell, allow_nan=False)
            if self.cells_file is not None:
                self.cells_file.parent.mkdir(parents=True, exist_ok=True)
                with self.cells_file.open("a") as file:
                    file.write(line + "\n")
            self.cells[key] = json.loads(line)
        if self.progress:
            self.progress(self._asked, total, key)
        return self.cells[key]["value"]

    def arms(self, names: Iterable[str], work: Callable[[str, int], Any]) -> dict[str, list[Any]]:
        """Return the cells ``work(arm, seed)`` of every arm, one a seed, kept as ``arm|seed``, seed after seed."""
        found: dict[str, list[Any]] = {name: [] for name in names}
        for seed in self.seeds:
            for name, own in found.items():
                own.append(self.cell(f"{name}|{seed}", partial(work, name, seed), len(found) * len(self.seeds)))
        return found


def study(
    name: str, *, claim: str, source: str, rule: str, data: str, extras: Sequence[str] = (), quick_seeds: int = 2
) -> Any:
    """Register a study.

    Args:
        name: ``pillar/claim``.
        claim: the claim in one sentence, as its authors make it.
        source: paper and section, or the article it comes from.
        rule: when the verdict is reproduced, partly, not reproduced; written before the study runs.
        data: what real data it runs on.
        extras: convsmith extras it needs.
        quick_seeds: how many seeds its quick form takes.
    """
    traits = {"claim": claim, "source": source, "rule": rule, "data": data, "extras": tuple(extras)}
    return STUDIES.register(name, **traits, quick_seeds=quick_seeds)


def fingerprint(name: str, quick: bool, seeds: Sequence[int], device: str) -> str:
    """Return a short hash of everything that makes finished cells of a study valid."""
    entry = STUDIES.entry(name)
    told = sorted((k, str(v)) for k, v in entry.traits.items() if k != "quick_seeds")  # the seeds tell
    text = json.dumps([name, quick, list(seeds), device, told])
    return hashlib.sha256(text.encode()).hexdigest()[:10]


def result_path(results: Path, name: str, quick: bool, device: str) -> Path:
    """Return where a study's JSON lives: ``<pillar>-<claim>--<quick|full>--<device>.json``."""
    return results / f"{name.replace('/', '-')}--{'quick' if quick else 'full'}--{torch.device(device).type}.json"


def run_study(
    name: str,
    *,
    quick: bool = False,
    seeds: int | None = None,
    device: str = "cpu",
    results: Path,
    again: bool = False,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Run one study, or read its result if it is finished under the same conditions; return the JSON.

    Cells go to ``results/cells/`` while it runs and are folded into the result, with raw numbers per seed, at its end.
    """
    entry = STUDIES.entry(name)
    numbers = list(range(seeds if seeds is not None else (entry.traits["quick_seeds"] if quick else 5)))
    path = result_path(results, name, quick, device)
    mark = fingerprint(name, quick, numbers, device)
    cells_file = results / "cells" / f"{path.stem}--{mark}.jsonl"
    if again:
        cells_file.unlink(missing_ok=True)
    running = Study(name, quick, numbers, device, cells_file, progress, results)
    if path.exists() and not again:
        value = json.loads(path.read_text())
        kept = {key: cell["value"] for key, cell in running.cells.items()}
        if value["fingerprint"] == mark and kept in ({}, value["cells"]):  # other cells: a run anew was stopped
            cells_file.unlink(missing_ok=True)
            return value
    begin = time.perf_counter()
    outcome = entry.value(running)
    value = {
        "schema": 1,
        "study": name,
        "quick": quick,
        "fingerprint": mark,
        **{key: entry.traits[key] for key in ("claim", "source", "rule", "data")},
        "verdict": outcome.verdict,
        "summary": outcome.summary,
        "seeds": numbers,
        "seconds": round(sum(cell["seconds"] for cell in running.cells.values()), 1),
        "seconds_this_run": round(time.perf_counter() - begin, 1),
        "conditions": conditions(device),
        "tables": [asdict(table) for table in outcome.tables],
        "figures": [{"caption": f.caption, "alt": f.alt, "svg": f.svg} for f in outcome.figures],
        "notes": list(outcome.notes),
        "cells": {key: cell["value"] for key, cell in running.cells.items()},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, value)
    cells_file.unlink(missing_ok=True)
    return value
