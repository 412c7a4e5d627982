"""Every claim of the papers as an experiment on real images that ends in a verdict."""

from __future__ import annotations

import importlib
import pkgutil

from convsmith.studies.contract import STUDIES, Outcome, Study, run_study, study
from convsmith.studies.statistics import Interval, interval, paired_difference

__all__ = [
    "STUDIES",
    "Interval",
    "Outcome",
    "Study",
    "available",
    "interval",
    "load_all",
    "paired_difference",
    "run_study",
    "study",
]

_OURS = {"contract", "statistics", "page"}


def load_all() -> None:
    """Import every study file of this folder, so that the registry is full."""
    for module in pkgutil.iter_modules(__path__):
        if module.name not in _OURS:
            importlib.import_module(f"convsmith.studies.{module.name}")


def available() -> list[str]:
    """Return the names of all studies."""
    load_all()
    return STUDIES.names()
