"""Side-by-side timing suites: every number stands beside its baseline, measured in the same run and process."""

from __future__ import annotations

from experiments.benchmarks.contract import SUITES, Bench, Case, Timing, run_suite, suite
from experiments.benchmarks.memory import peak_bytes, saved_bytes

__all__ = [
    "SUITES",
    "Bench",
    "Case",
    "Timing",
    "available",
    "peak_bytes",
    "run_suite",
    "saved_bytes",
    "suite",
]


def available() -> list[str]:
    """Return the names of all suites."""
    return SUITES.names()
