"""Intervals over seeds: the mean with a Student t interval, and the paired difference of two arms."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean over ``n`` independent seeds with its 95 % Student t interval (low = high = mean when n = 1)."""

    mean: float
    low: float
    high: float
    n: int

    def __str__(self) -> str:
        if self.n == 1:
            return f"{self.mean:.2f} (one seed)"
        return f"{self.mean:.2f} ± {(self.high - self.low) / 2:.2f}"


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    """Return the mean of ``values`` (one per seed) with its Student t interval."""
    n = len(values)
    mean = math.fsum(values) / n
    if n == 1:
        return Interval(mean, mean, mean, 1)
    variance = math.fsum((v - mean) ** 2 for v in values) / (n - 1)
    half = float(stats.t.ppf(0.5 + level / 2, n - 1)) * math.sqrt(variance / n)
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(first: Sequence[float], second: Sequence[float], level: float = 0.95) -> Interval:
    """Return the interval of ``first - second``, seed by seed; both arms saw the same seeds in the same order."""
    return interval([a - b for a, b in zip(first, second, strict=True)], level)
