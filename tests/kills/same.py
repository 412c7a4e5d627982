"""Whether two folders hold the same results: bits of weights, rows of tables, all but times."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open

#: keys whose values are times, or follow from them
TIMES = re.compile(r"seconds|latency|time kept|^(began|ended|created|machine|conditions|front)")
#: times inside sentences, and sentences that are there because of a time
SPOKEN, TIMED = re.compile(r"\d+(\.\d+)? (s|ms|min|h)\b"), re.compile(r"the time is \d|no time gained")
#: files that say where and when a run was made, repeat what others say, or are a table of times
TOLD = re.compile(r"environment(-resumed-\d+)?\.json|.*\.html|20-compression\.json")
#: a checkpoint: where, and its step
STEP = re.compile(r"(.*)checkpoints/step-(\d+)")
#: what a finished run must not leave
LEFT = re.compile(r"\.lock|\..*\.draft|\.writing-.*|\.removing-.*|\.write-probe|.*\.parts")


def differences(found: Path, wanted: Path) -> list[str]:
    """Return what differs between two folders, one line a file."""
    lines = [f"{name} is left" for name in _names(found) if any(LEFT.fullmatch(part) for part in Path(name).parts)]
    ours, theirs = (
        {n for n in _names(p) if not TOLD.fullmatch(Path(n).name) and f"{n} is left" not in lines}
        for p in (found, wanted)
    )
    lines += [f"{name} is missing" for name in sorted(theirs - ours)]
    lines += [f"{name} is too many" for name in sorted(ours - theirs)]
    return lines + [line for name in sorted(ours & theirs) for line in _differing(found / name, wanted / name, name)]


def _names(folder: Path) -> list[str]:
    """Return everything in a folder, but only the last checkpoint: a run that was stopped has others before it."""
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))
    steps = {name: found.groups() for name in names if (found := STEP.match(name))}
    last = dict(sorted(steps.values()))
    return [name for name in names if name not in steps or last[steps[name][0]] == steps[name][1]]


def _differing(found: Path, wanted: Path, name: str) -> Iterator[str]:
    if wanted.is_dir() or found.is_dir():
        if found.is_dir() != wanted.is_dir():
            yield f"{name} is a folder in one"
        return
    try:
        ours, theirs = content(found), content(wanted)
    except Exception as error:
        yield f"{name} cannot be read: {type(error).__name__}: {error}"
        return
    if not _equal(ours, theirs):
        yield f"{name} differs"


def content(path: Path) -> Any:
    """Return what a file says, without times."""
    if path.suffix == ".json":
        return _timeless(json.loads(path.read_text(encoding="utf-8")))
    if path.suffix == ".jsonl":
        return [_timeless(json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]
    if path.suffix == ".yaml":
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    if path.suffix == ".csv":
        with path.open(newline="", encoding="utf-8") as file:
            return [_timeless(row) for row in csv.DictReader(file)]
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    if path.suffix == ".safetensors":  # its metadata have no order
        with safe_open(path, "pt") as stored:
            return stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    return path.read_bytes()


def _timeless(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _timeless(inner) for key, inner in value.items() if not TIMES.search(str(key))}
    if isinstance(value, list):
        return [_timeless(inner) for inner in value if not (isinstance(inner, str) and TIMED.search(inner))]
    return SPOKEN.sub("a while", value) if isinstance(value, str) else value


def _equal(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
    return bool(one == other or (one != one and other != other))
