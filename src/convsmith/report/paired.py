"""Two runs on the same images: the paired difference of their accuracies with its interval, and a verdict in words."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from convsmith.files import read_json, write_json
from convsmith.training import bootstrap_interval

NAME = "outcomes.json"


@dataclass(frozen=True)
class Outcomes:
    """Which images of a split a run classified rightly; ``index`` numbers them in their data set."""

    data: str
    split: str
    index: list[int]
    correct: list[int]


def write_outcomes(folder: Path, outcomes: Outcomes) -> Path:
    """Write ``outcomes.json`` into a run folder."""
    return write_json(folder / NAME, vars(outcomes))


def read_outcomes(folder: Path) -> Outcomes | None:
    """Read them; None where the run has none."""
    if not (folder / NAME).is_file():
        return None
    kinds = {"data": str, "split": str, "index": list, "correct": list}
    value = read_json(folder / NAME, "the record of right answers", kinds)
    return Outcomes(**{name: value[name] for name in kinds})


def difference(first: Outcomes, second: Outcomes, seed: int = 0) -> tuple[float, float, float]:
    """Return accuracy of ``second`` minus that of ``first`` with its 95 % bootstrap interval over images."""
    gain = torch.tensor(second.correct, dtype=torch.float64) - torch.tensor(first.correct, dtype=torch.float64)
    return float(gain.mean()), *bootstrap_interval(gain, seed, resamples=2000)


def compared(first: str, a: Outcomes | None, second: str, b: Outcomes | None) -> str | None:
    """Return one sentence on two runs, None where neither has outcomes."""
    if a is None and b is None:
        return None
    if a is None or b is None:
        name = first if a is None else second
        return f"{second} and {first} are not compared: {name} has no {NAME}, which train and evaluate write."
    if (a.data, a.split, a.index) != (b.data, b.split, b.index):
        return f"{second} and {first} were measured on different images: their accuracies are not comparable."
    if not a.index:
        return None
    middle, low, high = (100 * value for value in difference(a, b))
    interval = f"{middle:+.2f} points ({low:+.2f} to {high:+.2f}, in pairs over {len(a.index)} images)"
    if low > 0:
        return f"{second} is better than {first}: {interval}."
    if high < 0:
        return f"{second} is worse than {first}: {interval}."
    return f"{second} is not better than {first} within the interval: {interval}."
