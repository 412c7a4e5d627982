"""Command lines: sound ones with words taken out, doubled, misspelled or replaced. None may be called a bug."""

from __future__ import annotations

import contextlib
import io
import random
import shlex
from collections.abc import Iterator
from pathlib import Path

from convsmith.cli.main import Program, main
from tests.fuzz.outcomes import Outcome, limited

WORDS = (
    "",
    "-1",
    "0",
    "1e99",
    "nan",
    "no/such/place",
    "digits",
    "--",
    "-h",
    "\udcff",
    "=",
    "a=b",
    "cuda:99",
    "[]",
    "ä",
)
#: verbs whose sound lines do nothing long; for the others every case breaks at least a word that must fit
QUICK = ("models", "methods", "data", "init", "doctor", "structures", "report")


def sound_lines() -> list[list[str]]:
    """Every verb's examples."""
    program = Program()
    return [shlex.split(line) for verb in program.verbs() for line in program.load(verb).EXAMPLES]


def spoiled(words: list[str], rng: random.Random) -> list[str]:
    """Break one or two words of a line; lines of long verbs get a place that does not exist as well."""
    words = list(words)
    for _ in range(rng.randint(1, 2)):
        place = rng.randrange(1, len(words)) if len(words) > 1 else 0
        way = rng.choice(("drop", "double", "misspell", "replace", "flag"))
        if way == "drop" and len(words) > 1:
            del words[place]
        elif way == "double":
            words.insert(place, words[place])
        elif way == "misspell" and len(words[place]) > 2:
            at = rng.randrange(len(words[place]) - 1)
            words[place] = words[place][:at] + words[place][at + 1] + words[place][at] + words[place][at + 2 :]
        elif way == "flag":
            words.insert(place, rng.choice(("--seed", "--config", "--resume", "--size", "--nonsense", "--json")))
        else:
            words[place] = rng.choice(WORDS)
    if words and words[0] not in QUICK:
        words += ["--config", "no/such/file.yaml"]
    return words


def run(folder: Path, cases: int, seed: int = 0) -> Iterator[Outcome]:
    """Run ``cases`` spoiled lines in ``folder`` and judge code and message."""
    rng = random.Random(seed)
    lines = sound_lines()
    folder.mkdir(parents=True, exist_ok=True)
    for _ in range(cases):
        words = spoiled(rng.choice(lines), rng)
        case = f"convsmith {' '.join(words)!r}"
        out, err = io.StringIO(), io.StringIO()
        with contextlib.chdir(folder), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                with limited(120):
                    code: object = main(words)
            except BaseException as error:
                code = f"{type(error).__name__}: {error}"
        text = err.getvalue()
        if code == 0:
            yield Outcome("answered", case)
        elif code == 2 and "Traceback" not in text and "this is a bug" not in text and text.strip():
            yield Outcome("refused", case, text)
        else:
            yield Outcome("broken", case, f"ended with {code}: {text[-300:]}")
