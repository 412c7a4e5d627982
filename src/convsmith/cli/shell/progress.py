"""One callback for long work: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, TextIO

from convsmith.cli.shell import terminal

if TYPE_CHECKING:
    from torch import Tensor, nn

#: ``(done, total, note)``; every long function of the library takes one
Callback = Callable[[int, int, str], None]


@contextmanager
def progress(title: str, stream: TextIO | None = None) -> Iterator[Callback]:
    """Give a callback that shows work under ``title`` on stderr.

    On a terminal it is a bar. Otherwise it is a line whenever another tenth is done or ten seconds have passed, never
    two within a second and none for work of less than one, so that a log stays readable.
    """
    stream = sys.stderr if stream is None else stream
    if not terminal.is_main_process():
        yield lambda *_: None  # another process speaks
    elif stream.isatty():
        with _bar(title, stream) as callback:
            yield callback
    else:
        yield Lines(title, stream)


@contextmanager
def _bar(title: str, stream: TextIO) -> Iterator[Callback]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(file=stream), transient=True, refresh_per_second=5) as bars:
        bar = bars.add_task(title, total=None, note="")

        def callback(done: int, total: int, note: str = "") -> None:
            if done < bars.tasks[0].completed:  # another phase: the pace of the one before says nothing about it
                bars.reset(bar)
            bars.update(bar, completed=done, total=total or None, note=note)

        yield callback


class Lines:
    """The callback for logs and pipes."""

    def __init__(self, title: str, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.title, self.stream, self.clock = title, stream, clock
        self.last_time = self.began = self.phase_began = clock()
        self.last_share = self.seen = 0.0
        self.last_seen = self.began
        self.first: tuple[float, float] | None = None

    def __call__(self, done: int, total: int, note: str = "") -> None:
        """Print a line if enough has happened since the last one."""
        now, share = self.clock(), done / total if total else 0.0
        if share < self.seen:  # another phase: its pace is its own
            self.phase_began, self.last_share, self.first = self.last_seen, 0.0, None
        self.first = self.first or (now, share)
        self.seen, self.last_seen = share, now
        since = now - self.last_time
        finished = total > 0 and done >= total and self.last_share < 1.0
        if now - self.began < 1.0:
            return
        if not finished and (since < 1.0 or (since < 10.0 and share - self.last_share < 0.1)):
            return
        self.last_time, self.last_share = now, share
        amount = f"{done}/{total}" if total else str(done)
        words = [f"{self.title}: {amount}", note, f"[{self._times(now, share)}]"]
        terminal.write(self.stream, " ".join(word for word in words if word))

    def _times(self, now: float, share: float) -> str:
        began, before = self.first or (now, share)
        if share <= before:  # the first word of a phase
            began, before = self.phase_began, 0.0
        # a resumed run begins in the middle: what was done before says nothing about its pace
        left = (now - began) * (1 - share) / (share - before) if share > 0 else 0.0
        return f"{now - self.began:.0f} s" + (f", about {duration(left)} left" if left >= 1 else "")


def duration(seconds: float) -> str:
    """Return seconds in the unit one would say."""
    for unit, length in (("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.0f} s"


def pass_seconds(model: nn.Module, images: Tensor) -> float:
    """Return the seconds of one pass forward and back, the best of two to six: beside other work some take tenfold."""
    import torch

    from convsmith.inspection.outputs import class_scores
    from convsmith.interpretation.find import prepare

    model, images = prepare(model, images)
    x = images.detach().clone().requires_grad_()
    took: list[float] = []
    while len(took) < 2 or (len(took) < 6 and sum(took) < 2):
        began = time.monotonic()
        with torch.enable_grad():
            answer = class_scores(model(x)).sum()
            if answer.requires_grad:  # who needs a gradient refuses its lack in its own words
                torch.autograd.grad(answer, x, allow_unused=True)
        took.append(time.monotonic() - began)
    return min(took)
