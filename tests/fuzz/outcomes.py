"""What may happen when convsmith is handed anything: a right answer, or a refusal that names the argument."""

from __future__ import annotations

import signal
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from convsmith.errors import ConvsmithError

#: outcome -> what it means; the first two are allowed
ALLOWED = ("answered", "refused")
#: a case that has used this much processor time hangs
SECONDS = 30


@dataclass(frozen=True)
class Outcome:
    """How one case ended: ``kind`` (see `ALLOWED`; else "wrong" or "broken"), the case in words, and the details."""

    kind: str
    case: str
    detail: str = ""

    @property
    def allowed(self) -> bool:
        return self.kind in ALLOWED


def outcome(case: str, work: Callable[[], Any], names: Iterable[str], check: Callable[[Any], str | None]) -> Outcome:
    """Run ``work``: its answer must pass ``check`` (None, or what is wrong); a refusal must name one of ``names``."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with limited():
                answer = work()
    except ConvsmithError as error:
        return Outcome("refused", case, str(error))
    except (ValueError, TypeError) as error:
        text = str(error)
        if any(name in text for name in names):
            return Outcome("refused", case, text)
        return Outcome("broken", case, f"{type(error).__name__} that names no argument: {text[:200]}\n{_last(error)}")
    except Exception as error:
        return Outcome("broken", case, f"{type(error).__name__}: {str(error)[:200]}\n{_last(error)}")
    wrong = check(answer)
    return Outcome("answered", case) if wrong is None else Outcome("wrong", case, wrong)


@contextmanager
def limited(seconds: float = SECONDS) -> Iterator[None]:
    """Raise RuntimeError in a block that takes more processor time than ``seconds``."""

    def stop(*_: object) -> None:
        raise RuntimeError(f"still at it after {seconds} s of processor time")

    before = signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def _last(error: BaseException) -> str:
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "convsmith" in f.filename]
    return f"{frames[-1].filename.split('convsmith/', 1)[-1]}:{frames[-1].lineno}" if frames else ""
