"""Every claim of the papers as an experiment on real images that ends in a verdict."""

from __future__ import annotations

from experiments.studies.contract import STUDIES, Outcome, Study, run_study, study
from experiments.studies.statistics import Interval, interval, paired_difference

__all__ = [
    "STUDIES",
    "Interval",
    "Outcome",
    "Study",
    "available",
    "interval",
    "paired_difference",
    "run_study",
    "study",
]


def available() -> list[str]:
    """Return the names of all studies."""
    return STUDIES.names()
