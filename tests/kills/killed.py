"""One command line in a process of its own that is killed at a chosen moment."""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from convsmith.cli.main import Program, main

#: what changes files, as Python's audit events name it; opening counts where it is for writing
CHANGES = ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.chmod")


@dataclass(frozen=True)
class Moment:
    """When a signal comes.

    ``way`` "at": before the file operation number ``count``, exactly; "after": ``seconds`` after it began; "time":
    ``seconds`` after the start.
    """

    way: str
    number: signal.Signals
    count: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        places = {
            "at": f"at file operation {self.count}",
            "after": f"{1e3 * self.seconds:.1f} ms after file operation {self.count}",
            "time": f"after {self.seconds:.2f} s",
        }
        return f"{self.number.name} {places[self.way]}"


@dataclass(frozen=True)
class Ended:
    """How a process ended: its exit code (negative: the signal), what it said, file operations and seconds."""

    code: int
    said: str
    operations: int
    seconds: float
    #: whether the signal was sent before the process ended
    struck: bool


def drawn(rng: random.Random, operations: int, seconds: float) -> Moment:
    """Draw a moment of a run that does so many file operations in so many seconds."""
    number = rng.choice((signal.SIGKILL, signal.SIGINT))
    way = rng.choice(("at", "after", "time"))
    if way == "time":
        return Moment(way, number, seconds=rng.uniform(0, seconds))
    return Moment(way, number, rng.randint(1, operations), rng.uniform(0, 0.004) if way == "after" else 0.0)


def run(program: Program, words: list[str], place: Path, moment: Moment | None = None, most: float = 600) -> Ended:
    """Run ``words`` in the folder ``place``, in a fork of this process, which must never have computed a gradient."""
    counted, told = os.pipe()
    said = place.with_name(f"{place.name}.said")
    began = time.monotonic()
    child = os.fork()
    if child == 0:
        os.close(counted)
        _become(program, words, place, said, told, moment)
    os.close(told)
    struck = moment is not None and _strike(child, counted, moment, began)
    code = _wait(child, began + most)
    seconds = time.monotonic() - began
    operations = 0
    while chunk := os.read(counted, 65536):
        operations += len(chunk)
    os.close(counted)
    text = said.read_text(encoding="utf-8", errors="replace")
    if moment is not None and moment.way == "at":
        struck = operations >= moment.count
    return Ended(code, text, operations, seconds, struck)


def _become(program: Program, words: list[str], place: Path, said: Path, told: int, moment: Moment | None) -> None:
    """Be the command, to the end of this process."""
    code = 99
    try:
        file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(file, stream)
        sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1) for stream in (1, 2))
        os.chdir(place)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        _watch(place, told, moment)
        code = main(words, program)
        sys.stdout.flush()
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def _watch(place: Path, told: int, moment: Moment | None) -> None:
    """Tell of every file operation in ``place``; send this process the signal of a moment that is exactly at one."""
    inside, done = f"{place.resolve()}{os.sep}", 0
    at = moment.count if moment is not None and moment.way == "at" else None

    def hook(event: str, given: tuple[object, ...]) -> None:
        nonlocal done
        if event not in CHANGES or not isinstance(given[0], (str, os.PathLike)):
            return
        if event == "open" and not int(given[2]) & (os.O_WRONLY | os.O_RDWR):  # type: ignore[call-overload]
            return
        if not os.path.abspath(given[0]).startswith(inside):  # noqa: PTH100  (resolving reads the disk)
            return
        done += 1
        os.write(told, b".")
        if done == at and moment is not None:
            os.kill(os.getpid(), moment.number)

    sys.addaudithook(hook)


def _strike(child: int, counted: int, moment: Moment, began: float) -> bool:
    """Send the signal from outside, where the moment says so; tell whether the process was still there."""
    if moment.way == "at":
        return False
    if moment.way == "after":
        left = moment.count
        while left and (chunk := os.read(counted, left)):
            left -= len(chunk)
        time.sleep(moment.seconds)
    else:
        time.sleep(max(0.0, began + moment.seconds - time.monotonic()))
    if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
        return False
    os.kill(child, moment.number)
    return True


def _wait(child: int, until: float) -> int:
    while time.monotonic() < until:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise RuntimeError("a command that was told to end, or to go on, hangs")
