"""How long a command takes before it does anything, in a fresh process."""

from __future__ import annotations

import subprocess
import sys

from experiments.benchmarks.contract import Bench, suite


@suite("cold-start")
def run(bench: Bench) -> None:
    """Start-up: the help text and a bare import of convsmith beside a bare interpreter and an import of torch."""

    def python(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

    bench.compare(
        "fresh process",
        {
            "bare interpreter": lambda: python("pass"),
            "import convsmith": lambda: python("import convsmith"),
            "convsmith --help": lambda: python("from convsmith.cli.main import main; main(['--help'])"),
            "import torch": lambda: python("import torch"),
        },
        baseline="bare interpreter",
        rounds=9,
        warmup=2,
        seconds=60,
        memory=False,
        aim="convsmith --help under 0.3 s",
    )
