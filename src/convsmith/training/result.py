"""What the loop gives back, and how it reports on the way."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FitResult:
    """What came out of `fit`.

    ``steps`` updates were done of ``total_steps``; ``best_step`` and ``best_value`` belong to the best evaluation of
    the task's monitored metric; ``seconds`` is training time, earlier parts of a resumed run included.
    """

    history: list[dict[str, Any]]
    steps: int
    total_steps: int
    best_step: int | None
    best_value: float | None
    seconds: float
    interrupted: bool
    stopped_early: bool
    device: str
    precision: str
    checkpoint: Path | None = None
