"""``python -m tests.fuzz --cases 20000``: run all three kinds of cases and write their counts as a page."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
from hypothesis import HealthCheck, Phase, given, settings

from tests.fuzz import calls, files, lines
from tests.fuzz.outcomes import Outcome
from tests.fuzz.page import environment, write_section

#: of all cases, this share each
SHARES = {"calls": 0.8, "files": 0.12, "lines": 0.08}


def fuzzed_calls(cases: int, seed: int = 0) -> list[Outcome]:
    """Return the outcomes of ``cases`` calls, the same ones every time for one ``seed``."""
    found: list[Outcome] = []

    @hypothesis.seed(seed)
    @settings(
        max_examples=cases,
        database=None,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate],
    )
    @given(calls.calls())
    def one(case):
        found.append(calls.run(case))

    one()
    return found


def all_outcomes(cases: int, seed: int) -> Iterator[tuple[str, Outcome]]:
    """Yield every outcome with the kind of its case."""
    for outcome in fuzzed_calls(round(cases * SHARES["calls"]), seed):
        yield "calls", outcome
    with tempfile.TemporaryDirectory() as folder:
        for outcome in files.run(Path(folder) / "files", round(cases * SHARES["files"]), seed):
            yield "files", outcome
        for outcome in lines.run(Path(folder) / "lines", round(cases * SHARES["lines"]), seed):
            yield "lines", outcome


def section(counts: Counter[tuple[str, str]], cases: int, seed: int, seconds: float) -> str:
    """Return the part of ``docs/reliability.md`` that counts outcomes."""
    kinds = {"calls": "public functions", "files": "damaged files", "lines": "command lines"}
    columns = ("answered", "refused", "wrong", "broken")
    numbers = {kind: [counts[kind, column] for column in columns] for kind in kinds}
    rows = [
        f"| {text} | " + " | ".join(f"{n:,}" for n in (sum(numbers[kind]), *numbers[kind])) + " |"
        for kind, text in kinds.items()
    ]
    return "\n".join(
        [
            f"Written by `python -m tests.fuzz` ({cases:,} cases, {seconds / 60:.0f} minutes, "
            f"hypothesis {hypothesis.__version__}, numpy {np.__version__},",
            f"{environment()}). Seed {seed}; the cases are the same every time.",
            "",
            "Allowed are a right answer (finite where the input is, of the input's type, float32 equal to float64",
            "within the method's tolerance, arguments untouched) and one error that names the argument.",
            "",
            "| input | cases | answered | refused by name | wrong | broken |",
            "|---|--:|--:|--:|--:|--:|",
            *rows,
        ]
    )


def main() -> int:
    """Run, print what is not allowed kind by kind, write the page; 1 if anything is not allowed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=20000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help="the page to write")
    parser.add_argument("--show", type=int, default=60, help="how many kinds of failures to print")
    given_arguments = parser.parse_args()
    began = time.monotonic()
    counts: Counter[tuple[str, str]] = Counter()
    failures: dict[str, list[Outcome]] = {}
    for kind, outcome in all_outcomes(given_arguments.cases, given_arguments.seed):
        counts[kind, outcome.kind] += 1
        if not outcome.allowed:
            key = f"{kind} {outcome.case.split('(')[0].split(':')[0][:40]} {outcome.detail.splitlines()[-1][:60]}"
            failures.setdefault(key, []).append(outcome)
    for found in sorted(failures.values(), key=len, reverse=True)[: given_arguments.show]:
        print(f"{len(found):5d} x {found[0].kind}: {found[0].case[:300]}\n        {found[0].detail[:400]}")
    text = section(counts, given_arguments.cases, given_arguments.seed, time.monotonic() - began)
    print(text)
    if given_arguments.write is not None:
        write_section(given_arguments.write, "Fuzzed input", text)
    return int(any(kind not in ("answered", "refused") for _, kind in counts))


if __name__ == "__main__":
    sys.exit(main())
