"""Two solvers for the gates of one batch: the published schedule step for step, and one that converges.

Both minimise, for every image b on its own, over gates 0 <= lambda <= upper

    L_b(lambda) = - sum_c p_bc log q_bc(lambda) + gamma_b * sum_k lambda_bk,      p = softmax of the full network,
                                                                                 q = softmax of the gated network,

and return the lowest-loss gates among all evaluated points whose predicted class is the full network's. All ones is
always such a point. Paper: Wang, Su, Zhang, Hu, "Interpret Neural Networks by Identifying Critical Data Routing
Paths", CVPR 2018, section 3 (objective and SGD schedule as in the authors' released code).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from convsmith.errors import InvalidArgument
from convsmith.interpretation.gates import GatedNetwork

LEARNING_RATE, MOMENTUM = 0.1, 0.9
#: the stop test of rows happens once in so many steps, so that the device is asked to wait only then
_CHECK_EVERY = 5
#: points in a row without the prediction before the cross-entropy weighs half as much again
_LOST_FOR = 8


@dataclass(frozen=True)
class Solution:
    """Gates [B, total], objective [B] at them, steps [B] taken, settled [B] bool (stopped by itself)."""

    gates: Tensor
    objective: Tensor
    steps: Tensor
    settled: Tensor


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
    second image with its momentum; here every image starts with zero velocity.
    """
    label = probabilities.argmax(1)
    gates = start.clone()
    velocity = torch.zeros_like(gates)
    best, lowest = start.clone(), torch.full_like(gamma, torch.inf)
    for step in range(steps):
        logits, divergence, gradient = _evaluate(network, gates, probabilities, floor=1e-20, last=step == steps - 1)
        objective = divergence + gamma * gates.abs().sum(1)
        better = (logits.argmax(1) == label) & (objective < lowest)
        best = torch.where(better[:, None], gates, best)
        lowest = torch.where(better, objective, lowest)
        if gradient is not None:
            velocity.mul_(MOMENTUM).add_(gradient).add_(gamma[:, None] * gates.sign())
            gates = gates.sub(velocity, alpha=LEARNING_RATE).clamp_(0, upper)
    taken = torch.full_like(label, steps)
    return Solution(best, lowest, taken, torch.zeros_like(label, dtype=torch.bool))


def solve_converged(
    network: GatedNetwork,
    probabilities: Tensor,
    gamma: Tensor,
    start: Tensor,
    *,
    steps: int = 100,
    upper: float = 5.0,
    step_size: float = 1.0,
    tolerance: float = 1e-3,
    patience: int = 5,
) -> Solution:
    """Accelerated proximal gradient (FISTA) with restart, step halving and stop, each decided row by row.

    One step, with y the extrapolated point, g the gradient of the cross-entropy at y, w its weight (1 at first) and s
    the row's step: ``x+ = clip(y - s (w g + gamma), 0, upper)`` (soft threshold and clip in one, as gates are not
    negative) and ``y+ = clip(x+ + (t - 1)/t+ (x+ - x), 0, upper)``. When the objective rises the row loses its
    momentum, and if it had none, half of its step. Where gamma presses so hard that the minimiser loses the prediction,
    w grows by half after every eight points in a row without it, and the row goes on from its best point in half steps:
    it then follows the same problem at a smaller gamma, while the best point is judged by the objective asked for. A
    row stops when its points keep the prediction and move by less than ``tolerance`` in every gate ``patience`` times,
    or its step falls below 1/1000 of ``step_size``; stopped rows leave the batch. The problem is not convex:
    "converged" means a point where the row came to rest, not the global minimum. Beck and Teboulle, SIAM J. Imaging
    Sci. 2009, (4.1)-(4.3); restart after O'Donoghue and Candes 2015.
    """
    state = _Rows(probabilities, gamma, start, step_size)
    rows = len(start)
    result = Solution(
        start.clone(),
        torch.full_like(gamma, torch.inf),
        torch.zeros(rows, dtype=torch.long, device=start.device),
        torch.zeros(rows, dtype=torch.bool, device=start.device),
    )
    for step in range(steps):
        logits, divergence, gradient = _evaluate(network, state.point, state.probabilities)
        assert gradient is not None
        state.judge(logits, divergence, gradient, tolerance, step + 1)
        state.advance(upper)
        if step + 1 < steps and (step + 1) % _CHECK_EVERY == 0:
            state.finish(result, state.done(patience, step_size))
            count, live = int(state.finished.sum()), len(state.finished)
            if count == live:
                return result
            if count >= max(1, live // 4):
                network.keep(~state.finished)
                state.keep(~state.finished)
    state.finish(result, state.done(patience, step_size))
    state.finish(result, torch.ones_like(state.finished), settled=False)
    return result


def furthest(steps: int) -> float:
    """How far a gate without gradient has come at the last point evaluated, in units of step size times gamma."""
    here = before = 0.0
    momentum = 1.0
    for _ in range(steps - 1):
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        target = here + 1
        here, before = target + (momentum - 1) / following * (target - before), target
        momentum = following
    return here


class _Rows:
    """Everything the converging solver knows about each unfinished image."""

    def __init__(self, probabilities: Tensor, gamma: Tensor, start: Tensor, size: float) -> None:
        self.probabilities, self.gamma, self.label = probabilities, gamma, probabilities.argmax(1)
        self.place = torch.arange(len(start), device=start.device)
        self.point, self.last, self.previous = start.clone(), start.clone(), start.clone()
        self.gradient, self.objective = torch.zeros_like(start), torch.full_like(gamma, torch.inf)
        self.weight, self.lost = torch.ones_like(gamma), torch.zeros_like(self.place)
        # all ones always keeps the prediction; its objective is the entropy of p plus gamma times the gates
        self.best, self.best_gradient = torch.ones_like(start), torch.zeros_like(start)
        self.best_entropy = -(probabilities * probabilities.clamp(min=torch.finfo(gamma.dtype).tiny).log()).sum(1)
        self.lowest = self.best_entropy + gamma * start.shape[1]
        self.momentum, self.pull = torch.ones_like(gamma), torch.zeros_like(gamma)
        self.size, self.largest = torch.full_like(gamma, size), size
        self.quiet, self.steps = torch.zeros_like(self.place), torch.zeros_like(self.place)
        self.finished = torch.zeros_like(self.place, dtype=torch.bool)
        self.fell = self.finished.clone()

    def judge(self, logits: Tensor, entropy: Tensor, gradient: Tensor, tolerance: float, step: int) -> None:
        """Remember the evaluated point of every row if it is its best, and see whether its objective fell."""
        total = self.point.sum(1)
        feasible = logits.argmax(1) == self.label
        asked = entropy + self.gamma * total
        better = feasible & (asked < self.lowest)
        self.best = torch.where(better[:, None], self.point, self.best)
        self.best_gradient = torch.where(better[:, None], gradient, self.best_gradient)
        self.best_entropy = torch.where(better, entropy, self.best_entropy)
        self.lowest = torch.where(better, asked, self.lowest)

        objective = self.weight * entropy + self.gamma * total
        slack = 1e-6 * self.objective.abs().nan_to_num(posinf=0.0)  # rounding must not look like a rise
        fell = objective <= self.objective + slack
        halved = torch.where(self.pull > 0, self.size, self.size / 2)
        self.size = torch.where(fell, (self.size * 1.1).clamp(max=self.largest), halved)
        move = (self.point - self.last).abs().amax(1)
        self.quiet = torch.where((move < tolerance) & feasible, self.quiet + 1, 0)

        self.lost = torch.where(feasible, 0, self.lost + 1)
        again = self.lost >= _LOST_FOR  # where a whole layer has closed no gradient leads out again
        self.point = torch.where(again[:, None], self.best, self.point)
        self.gradient = torch.where(again[:, None], self.best_gradient, gradient)
        self.weight = torch.where(again, self.weight * 1.5, self.weight)
        self.size = torch.where(again, self.size / 2, self.size)
        self.objective = torch.where(again, self.weight * self.best_entropy + self.gamma * self.best.sum(1), objective)
        self.lost = torch.where(again, 0, self.lost)
        self.fell = fell & ~again
        self.steps.fill_(step)

    def advance(self, upper: float) -> None:
        """Move every row to its next point."""
        t = torch.where(self.fell, (1 + torch.sqrt(1 + 4 * self.momentum**2)) / 2, 1.0)
        self.pull = torch.where(self.fell, (self.momentum - 1) / t, 0.0)
        slope = self.weight[:, None] * self.gradient + self.gamma[:, None]
        target = (self.point - self.size[:, None] * slope).clamp_(0, upper)
        self.last = self.point
        self.point = (target + self.pull[:, None] * (target - self.previous)).clamp_(0, upper)
        self.previous, self.momentum = target, t

    def done(self, patience: int, step_size: float) -> Tensor:
        """Tell which rows have stopped."""
        return (self.quiet >= patience) | (self.size < step_size / 1000)

    def finish(self, result: Solution, rows: Tensor, settled: bool = True) -> None:
        """Write the best gates of ``rows``; once written a row never changes, however long it stays in the batch."""
        rows = rows & ~self.finished
        place = self.place[rows]
        result.gates[place] = self.best[rows]
        result.objective[place] = self.lowest[rows]
        result.steps[place] = self.steps[rows]
        result.settled[place] = settled
        self.finished = self.finished | rows

    def keep(self, rows: Tensor) -> None:
        """Drop the other rows."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])


def _evaluate(
    network: GatedNetwork, gates: Tensor, probabilities: Tensor, *, floor: float = 0.0, last: bool = False
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return logits [B, K], cross-entropy [B] and its gradient [B, total] at ``gates`` (none for the last point)."""
    if last:
        with torch.no_grad():
            logits = network.logits(gates)
            return logits, _cross_entropy(logits, probabilities, floor), None
    gates = gates.detach().requires_grad_(True)
    logits = network.logits(gates)
    if not logits.requires_grad:
        raise InvalidArgument(
            "the output does not depend on the gates in a way autograd can follow",
            given=type(network.model).__name__,
            hint="look for torch.no_grad, detach or inference_mode inside the network's forward",
        )
    loss = _cross_entropy(logits, probabilities, floor)
    (gradient,) = torch.autograd.grad(loss.sum(), gates)
    return logits.detach(), loss.detach(), gradient


def _cross_entropy(logits: Tensor, probabilities: Tensor, floor: float) -> Tensor:
    if floor:
        return -(probabilities * torch.log(logits.softmax(1) + floor)).sum(1)
    return -(probabilities * logits.log_softmax(1)).sum(1)
