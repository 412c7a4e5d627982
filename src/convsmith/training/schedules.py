"""Learning-rate factors: pure functions of the step, so that a resumed run cannot lose its place.

Each function returns what the base rate is multiplied with at step ``t`` (0-based, updates done so far).
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from convsmith.training.config import TrainConfig


def cosine(t: int, total: int, final: float = 0.0) -> float:
    """Half a cosine from 1 at ``t = 0`` to ``final`` at ``t = total``.

    ``final + (1 - final) * (1 + cos(pi t / total)) / 2`` (Loshchilov & Hutter, SGDR 2017, eq. 5, one period).
    """
    if total <= 0:
        return 1.0
    return final + (1 - final) * (1 + math.cos(math.pi * min(t, total) / total)) / 2


def step(t: int, total: int, milestones: Sequence[float] = (0.5, 0.75), factor: float = 0.1) -> float:
    """``factor ** (milestones passed)``; a milestone is a fraction of ``total`` and counts from its step on."""
    return factor ** bisect.bisect_right([math.ceil(m * total) for m in milestones], t)


def inverse(t: int, gamma: float = 0.001, power: float = 0.75) -> float:
    """``(1 + gamma t) ** -power``, Caffe's "inv" policy (Ganin & Lempitsky 2015 use gamma 10/total)."""
    return (1 + gamma * t) ** -power


def factor(config: TrainConfig, t: int, total: int) -> float:
    """Return a configuration's factor: linear warm-up ``(t + 1) / warmup_steps``, then the schedule from its start.

    Args:
        config: names the schedule and its constants.
        t: updates done so far, ``0 <= t < total``.
        total: updates in all, the warm-up's included.
    """
    if t < config.warmup_steps:
        return (t + 1) / config.warmup_steps
    t, total = t - config.warmup_steps, total - config.warmup_steps
    if config.schedule == "cosine":
        return cosine(t, total, config.final_factor)
    if config.schedule == "step":
        return step(t, total, config.milestones, config.step_factor)
    if config.schedule == "inverse":
        return inverse(t, config.gamma, config.power)
    return 1.0
