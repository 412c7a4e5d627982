"""The published schedule, step for step: SGD with momentum, thirty steps, the best point that keeps the prediction."""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.solvers.problem import Solution, evaluate

LEARNING_RATE, MOMENTUM = 0.1, 0.9


def solve_paper(
    network: GatedNetwork,
    probabilities: Tensor,
    gamma: Tensor,
    start: Tensor,
    *,
    steps: int = 30,
    upper: float = 5.0,
) -> Solution:
    """Run the published schedule: SGD, learning rate 0.1, momentum 0.9, clamp to [0, upper] after every step.

    Shapes: ``probabilities`` [B, K] of the full network, ``gamma`` [B], ``start`` [B, total]. Points 0 .. steps-1 are
    evaluated; the one after the last step is not (as published). The cross-entropy is -sum p log(q + 1e-20), and the
    gradient of the L1 part at a gate of 0 is 0, both as published. The published optimiser object was reused for a
    second image with its momentum; here every image starts with zero velocity. The schedule ends by its number of
    steps, so no row counts as converged. Wang et al., CVPR 2018, as in the authors' released code.
    """
    gates = start.clone()
    velocity = torch.zeros_like(gates)
    best, lowest = start.clone(), torch.full_like(gamma, torch.inf)
    for _ in range(steps):
        here = evaluate(network, gates, probabilities, floor=1e-20)
        objective = here.cross_entropy + gamma * gates.abs().sum(1)
        better = here.kept & (objective < lowest)
        best = torch.where(better[:, None], gates, best)
        lowest = torch.where(better, objective, lowest)
        velocity.mul_(MOMENTUM).add_(here.gradient).add_(gamma[:, None] * gates.sign())
        gates = gates.sub(velocity, alpha=LEARNING_RATE).clamp_(0, upper)
    return Solution(
        best, lowest, torch.full_like(gamma, steps, dtype=torch.long), torch.zeros_like(gamma, dtype=torch.bool)
    )
