"""Side-by-side timing suites: every number stands beside its baseline, measured in the same run and process."""

from __future__ import annotations

import importlib
import pkgutil

from convsmith.benchmarks.contract import SUITES, Bench, Case, Timing, run_suite, suite
from convsmith.benchmarks.memory import peak_bytes, saved_bytes

__all__ = [
    "SUITES",
    "Bench",
    "Case",
    "Timing",
    "available",
    "load_all",
    "peak_bytes",
    "run_suite",
    "saved_bytes",
    "suite",
]

_OURS = {"contract", "memory", "page"}


def load_all() -> None:
    """Import every suite file of this folder, so that the registry is full."""
    for module in pkgutil.iter_modules(__path__):
        if module.name not in _OURS:
            importlib.import_module(f"convsmith.benchmarks.{module.name}")


def available() -> list[str]:
    """Return the names of all suites."""
    load_all()
    return SUITES.names()
