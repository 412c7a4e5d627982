"""The one training loop, as a function: `fit` checks, starts the machine, runs and cleans up."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from convsmith.arguments import checked
from convsmith.data.batch import Batch
from convsmith.data.source import Progress
from convsmith.errors import InvalidArgument, refusing
from convsmith.training import checkpoint as checkpoints
from convsmith.training import randomness
from convsmith.training.config import TrainConfig
from convsmith.training.machine import rank_and_world, start_machine
from convsmith.training.run import FitResult, Run
from convsmith.training.task import Task


@checked
def fit(
    task: Task,
    loader: Any,
    config: TrainConfig,
    *,
    validation: Iterable[Batch] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Train ``task`` in place and leave it in eval mode on the device it was trained on.

    Args:
        task: what is trained; see `Task`.
        loader: has ``len()`` (batches per epoch) and ``epoch(e, start)``; or is a plain sequence of batches.
        config: see `TrainConfig`.
        validation: batches for `Task.evaluate`, iterated anew each time.
        out: run folder for checkpoints, ``history.jsonl`` and ``history.csv``; None keeps everything in memory.
        resume: continue from the latest checkpoint in ``out``: the same weights, bit for bit on a CPU, as without the
            interruption.
        progress: called between steps with steps done, steps in all and a note.

    Raises:
        InvalidArgument: before any work, for settings, data or a checkpoint that do not fit.
        RunFailed: a loss that is not finite, or another process of the run that ended; the last good checkpoint stays.

    SIGTERM and Ctrl-C end the run between two steps, after a checkpoint, with ``interrupted`` set; a second Ctrl-C
    stops at once. The global random states are put back to what they were before the call.

    Examples:
        >>> result = fit(ClassificationTask(model, num_classes=10), loader, TrainConfig(steps=2, device="cpu"))
    """
    out = Path(out) if out is not None else None
    _check(loader, config, validation, out, resume)
    before = randomness.capture()
    try:
        with start_machine(config, out) as machine, signals() as asked, machine.together(out):
            run = Run(task, loader, config, validation, out, progress, machine)
            run.start(resume)
            return run.finish(run.train(asked))
    finally:
        randomness.restore(before)


@contextmanager
def signals() -> Iterator[Callable[[], bool]]:
    """Give a function that tells whether SIGTERM or Ctrl-C has come; a second Ctrl-C stops at once.

    Outside the main thread, where Python delivers no signals, nothing is installed.
    """
    came = False

    def remember(number: int, _frame: FrameType | None) -> None:
        nonlocal came
        if came and number == signal.SIGINT:
            raise KeyboardInterrupt
        came = True

    before = {}
    if threading.current_thread() is threading.main_thread():
        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _check(loader: Any, config: TrainConfig, validation: Any, out: Path | None, resume: bool) -> None:
    """Refuse before any work what cannot work."""
    if not hasattr(loader, "__len__"):
        rule = "a loader has a length, in batches per epoch"
        raise InvalidArgument(rule, argument="loader", given=type(loader).__name__, hint="give a list")
    if len(loader) == 0:
        hint = "a smaller batch size or more images"
        raise InvalidArgument("there is no batch to train on", argument="loader", given="0 batches", hint=hint)
    share, mine = (getattr(loader, "rank", None), getattr(loader, "world", None)), rank_and_world()
    if share[0] is not None and share != mine:
        rule, given = "the loader gives the share of another process", f"a loader for process {share[0]} of {share[1]}"
        hint = "Loader(..., rank=rank, world=world) with convsmith.training.rank_and_world()"
        raise InvalidArgument(rule, argument=f"process {mine[0]} of {mine[1]}", given=given, hint=hint)
    if validation is None:
        for name, asked in (
            ("patience", config.patience is not None),
            ("evaluate_every", config.evaluate_every is not None),
            ("restore", config.restore == "best"),
        ):
            if asked:
                argument = f"{name}={getattr(config, name)}"
                raise InvalidArgument("needs validation data", argument=argument, given="validation=None")
    if resume and out is None:
        raise InvalidArgument("a run is resumed from its folder", argument="resume=True", given="out=None")
    if out is None:
        if config.checkpoint_every is not None:
            raise InvalidArgument("checkpoints need a run folder", argument="checkpoint_every", given="out=None")
        return
    if mine[0] != 0:  # the first process looks at the folder for all; the others meet it before anything is written
        return
    with refusing("the run folder cannot be written", OSError, argument=str(out), hint="name another folder"):
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-probe"
        probe.touch()
        probe.unlink()
    if not resume and checkpoints.saved_steps(out):
        hint = "name another folder, or resume it"
        raise InvalidArgument("this folder already holds a run", argument=str(out), given="checkpoints", hint=hint)
