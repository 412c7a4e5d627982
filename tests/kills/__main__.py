"""``python -m tests.kills --times 100``: kill commands at random moments, go on as they say, compare, write counts."""

from __future__ import annotations

import argparse
import importlib
import random
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from convsmith.cli.main import Program
from experiments.__main__ import PROGRAM as STUDIES
from tests.fuzz.page import environment, write_section
from tests.kills import killed
from tests.kills.same import differences

CONVSMITH = Program()
FIRST = "train --model cs_resnet20 --model-args width=4 depth=8 --data digits --limit 120 --epochs 2 --out first"
#: verb -> its command; ``first`` is a trained network beside the run
LINES: dict[str, tuple[Program, str]] = {
    "train": (
        CONVSMITH,
        "train --model cs_resnet20 --model-args width=4 depth=8 --data digits --augment digits --mixup 0.2 --limit 120"
        " --epochs 4 --batch-size 20 --ema 0.9 --restore best --checkpoint-every 4 --log-every 3 --out run",
    ),
    "compress": (
        CONVSMITH,
        "compress first --data digits --method low-rank,sparse --keep-macs 0.6 --finetune-epochs 2 --limit 200"
        " --no-compiled --no-onnx --out run",
    ),
    "adapt": (
        CONVSMITH,
        "adapt --source mnist-5k --target digits --target-classes 0-4 --size 16 --model cs_resnet20"
        " --model-args width=4 depth=8 --steps 12 --batch-size 8 --num-evals 3 --validator entropy --out run",
    ),
    "explain": (
        CONVSMITH,
        "explain first --data digits --limit 8 --batch-size 2 --steps 6 --show 2 --reference 10"
        " --save routes.safetensors --out run",
    ),
    "detect": (CONVSMITH, "detect fit first --data digits --per-class 2 --limit 60 --test-images 20 --out run"),
    "experiments": (STUDIES, "study redundancy/arithmetic --quick --out run"),
}
ROOMS = ("adaptation", "compression", "data", "interpretation", "models.storage", "report", "training")
NEEDED = ("matplotlib.pyplot", "sklearn.ensemble", "timm", *(f"convsmith.{room}" for room in ROOMS))
#: a signal that came while Python ran a weak reference's callback: Python says so, and goes on as if there were none
IGNORED = re.compile(r"^Exception ignored in: .*\nTraceback.*\n(?:(?: +.*)?\n)*KeyboardInterrupt: *\n", re.MULTILINE)
#: what a person typed after a kill, as the message said -> a result equal to an uninterrupted run's
EQUAL = ("the same command", "`--resume`", "`--overwrite`")
#: another result; no way on after six tries; a traceback
WRONG = ("differs", "stuck", "broken")


@dataclass(frozen=True)
class Case:
    """What came of one killed command."""

    verb: str
    moments: tuple[killed.Moment, ...]
    outcome: str
    detail: str = ""

    @property
    def allowed(self) -> bool:
        return self.outcome in EQUAL


class Verb:
    """A command line with its uninterrupted result."""

    def __init__(self, name: str, root: Path, first: Path) -> None:
        self.name, self.root, self.first = name, root, first
        self.program, line = LINES[name]
        self.words = shlex.split(line)
        self.wanted = self.place("wanted")
        self.whole = killed.run(self.program, self.words, self.wanted)
        if self.whole.code:
            raise RuntimeError(f"{line} ended with {self.whole.code}: {self.whole.said[-2000:]}")

    def place(self, name: str) -> Path:
        """Return a new folder with the trained network in it."""
        place = self.root / f"{self.name}-{name}"
        place.mkdir()
        shutil.copytree(self.first, place / "first")
        return place

    def case(self, rng: random.Random, name: str) -> Case:
        """Kill once (one time in four, its successor too), go on as a person would, compare."""
        place, words, ended = self.place(name), self.words, None
        moments: list[killed.Moment] = []
        kills = 1 + (rng.random() < 0.25)
        tries = 0
        while tries < 6 + kills:
            tries, moment = tries + 1, None
            if len(moments) < kills:
                moment = killed.drawn(rng, self.whole.operations, self.whole.seconds)
            ended = killed.run(self.program, words, place, moment)
            if ended.struck and moment is not None:
                moments.append(moment)
            if "this is a bug" in ended.said or "Traceback" in re.sub(IGNORED, "", ended.said):
                return self._found(place, moments, "broken", ended)
            if ended.code == 0 and not moments:  # it was faster than the signal: once more, from the beginning
                shutil.rmtree(place)
                place, tries = self.place(name), 0
                self.whole = min(self.whole, ended, key=lambda whole: whole.seconds)
                continue
            if ended.code == 0:
                break
            words = following(words, ended.said)
        assert ended is not None
        if ended.code:
            return self._found(place, moments, "stuck", ended)
        wrong = differences(place, self.wanted)
        if wrong:
            return self._found(place, moments, "differs", ended, "; ".join(wrong))
        shutil.rmtree(place)
        return Case(self.name, tuple(moments), next((way for way in EQUAL[1:] if way.strip("`") in words), EQUAL[0]))

    def _found(
        self, place: Path, moments: list[killed.Moment], outcome: str, ended: killed.Ended, more: str = ""
    ) -> Case:
        return Case(self.name, tuple(moments), outcome, f"{place}: {more} ({ended.code}) {ended.said[-1500:]}")


def following(words: list[str], said: str) -> list[str]:
    """Return what a person types after reading what a command said: its advice, or the same command."""
    advice = re.search(r"go on with: (?:convsmith|python -m experiments) (.+)", said)
    if advice:
        return shlex.split(advice[1])
    if "--resume to go on" in said:
        return [*words, "--resume"]
    if "leave --resume out" in said:
        return [word for word in words if word != "--resume"]
    if "--overwrite to replace it" in said:
        return [*words, "--overwrite"]
    return words


def load() -> None:
    """Import once, here, what every forked command needs: seconds each."""
    for program in (CONVSMITH, STUDIES):
        for verb in program.verbs():
            program.load(verb)
    for module in NEEDED:
        importlib.import_module(module)


def section(cases: list[Case], seed: int, seconds: float) -> str:
    """Return the part of ``docs/reliability.md`` that counts kills."""
    counts = Counter((case.verb, case.outcome) for case in cases)
    rows = []
    for verb in dict.fromkeys(case.verb for case in cases):
        own = [case for case in cases if case.verb == verb]
        signals = Counter(moment.number.name for case in own for moment in case.moments)
        numbers = [signals["SIGKILL"], signals["SIGINT"], *(counts[verb, outcome] for outcome in (*EQUAL, *WRONG))]
        rows.append(f"| `{verb}` | " + " | ".join(map(str, numbers)) + " |")
    return "\n".join(
        [
            f"Written by `python -m tests.kills` ({len(cases)} runs, {seconds / 60:.0f} minutes,",
            f"{environment()}). Seed {seed}.",
            "",
            "A command is killed at a random moment: at a file operation of its, within 4 ms after one, or at any time",
            "of its run; one run in four is killed again when it goes on. What it says is then done (the same command,",
            "`--resume` or `--overwrite`). The result must be that of an uninterrupted run: weights, checkpoints,",
            "routes and detectors bit for bit, tables and JSON but for times; no draft or lock may be left.",
            "",
            f"| command | SIGKILL | SIGINT | equal by {' | equal by '.join(EQUAL)} | {' | '.join(WRONG)} |",
            "|---|" + "--:|" * (2 + len(EQUAL) + len(WRONG)),
            *rows,
        ]
    )


def main() -> int:
    """Run, print what is not allowed, write the section; 1 if anything is not allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--times", type=int, default=100, help="killed runs, over all verbs in turn")
    parser.add_argument("--verb", choices=LINES, action="append", help="only this one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--keep", type=Path, help="where to work, and leave what is wrong")
    given = parser.parse_args()
    began, cases = time.monotonic(), []
    root = Path(tempfile.mkdtemp()) if given.keep is None else given.keep
    root.mkdir(parents=True, exist_ok=True)
    load()
    first = killed.run(CONVSMITH, shlex.split(FIRST), root)
    if first.code:
        raise RuntimeError(first.said)
    verbs = [Verb(name, root, root / "first") for name in given.verb or LINES]
    for number in range(given.times):
        case = verbs[number % len(verbs)].case(random.Random(f"{given.seed} {number}"), str(number))
        cases.append(case)
        moments = ", then ".join(map(str, case.moments))
        print(f"{number + 1:4d} {case.verb:12s} {case.outcome:16s} {moments} {case.detail}", flush=True)
    text = section(cases, given.seed, time.monotonic() - began)
    print(text)
    if given.write is not None:
        write_section(given.write, "Killed at any moment", text)
    if given.keep is None:
        shutil.rmtree(root)
    return int(not all(case.allowed for case in cases))


if __name__ == "__main__":
    sys.exit(main())
