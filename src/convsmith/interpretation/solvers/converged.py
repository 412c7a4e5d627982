"""A solver that converges, without a step size: limited-memory BFGS on roots of the gates, decided row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.solvers.problem import Evaluation, Solution, evaluate

#: gates are cubes of what moves, so that a gate near 0 takes small steps and a large one large steps
POWER = 3
#: pairs of the quasi-Newton model; largest change of a root in one step (roots start at 1)
PAIRS, REACH = 10, 0.1
#: a gate below this that the objective wants smaller is closed for good, unless the optimality test reopens it
CLOSED = 1e-3
#: sufficient decrease of a step
DECREASE = 1e-4
#: accepted points in a row without the prediction before it weighs more, and with it before it may weigh nothing again
LOST_FOR, HELD_FOR, EXTRA = 6, 3, 0.25
#: the stop test of rows happens once in so many passes, so that the device is asked to wait only then
_CHECK_EVERY = 5


def solve_converged(
    network: GatedNetwork,
    probabilities: Tensor,
    gamma: Tensor,
    start: Tensor,
    *,
    passes: int = 150,
    upper: float = 5.0,
    tolerance: float = 0.03,
) -> Solution:
    """Minimise every row's objective until its projected gradient is small beside that of open gates.

    With ``lambda = z^3`` each row takes limited-memory BFGS steps in z (10 pairs), no root moving by more than 0.1, and
    backtracks by quadratic interpolation until the objective falls sufficiently (Armijo, 1e-4). Nothing depends on the
    other rows or on a step size; in z a gate near 0 moves little, so no layer closes by one long step, and gates that
    carry much grow faster, which favours few of them. Gates below 1e-3 that the objective wants smaller are set to 0.

    Stop: ``|lambda - clip(lambda - g, 0, upper)| <= tolerance * gamma * sqrt(total)``, g the gradient by lambda; the
    right side is the left one at open gates, where the cross-entropy has no gradient. The test sees closed gates that
    would rather open (g < 0) and opens them. Rows that meet it leave the batch, "converged"; the others stop after
    ``passes``. The problem is not convex: a converged row is a local minimum, one of several.

    Where gamma presses so hard that the minimiser loses the prediction, the row returns to its best point and goes on
    with ``-log q(label)`` added at a weight that doubles until the prediction holds; the best point is always judged by
    the objective asked for, and never gets worse. Nocedal and Wright, Numerical Optimization, 2nd ed., algorithms 3.1
    and 7.4.
    """
    rows = _Rows(probabilities, gamma, start, upper, tolerance)
    result = Solution(
        start.clone(),
        torch.full_like(gamma, torch.inf),
        torch.zeros(len(start), dtype=torch.long, device=start.device),
        torch.zeros(len(start), dtype=torch.bool, device=start.device),
    )
    for taken in range(1, passes + 1):
        rows.judge(evaluate(network, rows.trial.abs() ** POWER, rows.probabilities, extra=rows.extra))
        rows.advance()
        if taken < passes and taken % _CHECK_EVERY == 0:
            live = ~rows.converged
            count = int(live.sum())
            if count == 0:
                break
            if count <= 0.75 * len(live):
                rows.write(result)
                network.select(live)
                rows.select(live)
    rows.write(result)
    return result


def smallest_gamma(dtype: torch.dtype, tolerance: float) -> float:
    """Return the gamma below which rounding of the network's gradient (some 100 eps) hides what the test asks for."""
    return 100 * torch.finfo(dtype).eps / tolerance


class _Rows:
    """Everything the converging solver knows about each unfinished image; first dimension the row."""

    def __init__(self, probabilities: Tensor, gamma: Tensor, start: Tensor, upper: float, tolerance: float) -> None:
        rows, total = start.shape
        self.probabilities, self.gamma, self.label = probabilities, gamma, probabilities.argmax(1)
        self.place = torch.arange(rows, device=start.device)
        self.highest, self.upper = upper ** (1 / POWER), upper
        least = smallest_gamma(start.dtype, tolerance)
        self.threshold = tolerance * gamma.clamp(min=least, max=1) * total**0.5

        self.trial = start.clamp(0, upper) ** (1 / POWER)
        self.root, self.slope = self.trial.clone(), torch.zeros_like(start)
        self.objective = torch.full_like(gamma, torch.inf)
        self.direction, self.length = torch.zeros_like(start), torch.ones_like(gamma)
        self.steps = start.new_zeros(rows, PAIRS, total)
        self.changes = start.new_zeros(rows, PAIRS, total)
        self.reach = torch.full_like(gamma, REACH)
        self.extra = torch.zeros_like(gamma)
        self.fresh = torch.ones_like(self.place, dtype=torch.bool)
        self.lost, self.held = torch.zeros_like(self.place), torch.zeros_like(self.place)
        self.pardoned = torch.zeros_like(self.fresh)
        self.converged = torch.zeros_like(self.fresh)
        self.accepted = torch.zeros_like(self.fresh)
        self.passes = torch.zeros_like(self.place)
        # all ones keeps the prediction; its objective is the entropy of p plus gamma times the gates
        self.best = torch.ones_like(start)
        entropy = -(probabilities * probabilities.clamp(min=torch.finfo(gamma.dtype).tiny).log()).sum(1)
        self.lowest = entropy + gamma * total

    def judge(self, here: Evaluation) -> None:
        """Accept the evaluated point of a row or shorten its step; remember it if it is the row's best."""
        gates = self.trial.abs() ** POWER
        weighed = self.gamma * gates.sum(1)
        asked = here.cross_entropy + weighed
        feasible = here.logits.argmax(1) == self.label
        live = ~self.converged  # a converged row never changes, however long it stays in the batch
        self.passes += live
        better = live & feasible & (asked < self.lowest)
        self.best = torch.where(better[:, None], gates, self.best)
        self.lowest = torch.where(better, asked, self.lowest)

        log_q = here.logits.log_softmax(1).gather(1, self.label[:, None])[:, 0]
        objective = asked - self.extra * log_q
        gradient = here.gradient + self.gamma[:, None]
        slope = gradient * POWER * self.trial.abs() ** (POWER - 1) * self.trial.sign()
        step, change = self.trial - self.root, slope - self.slope
        expected = (self.slope * step).sum(1)
        slack = 8 * torch.finfo(objective.dtype).eps * self.objective.abs().nan_to_num(posinf=0.0)
        accepted = self.fresh | (objective <= self.objective + DECREASE * expected.clamp(max=0) + slack)

        pair = (accepted & ~self.fresh)[:, None, None]
        self.steps = torch.where(pair, torch.cat([step[:, None], self.steps[:, :-1]], 1), self.steps)
        self.changes = torch.where(pair, torch.cat([change[:, None], self.changes[:, :-1]], 1), self.changes)
        curvature = (objective - self.objective - expected).clamp(min=torch.finfo(objective.dtype).tiny)
        shorter = (-expected / (2 * curvature)).nan_to_num(nan=0.1, posinf=0.5).clamp(0.1, 0.5)
        self.length = torch.where(accepted, 1.0, self.length * shorter)

        take = accepted[:, None]
        self.root = torch.where(take, self.trial, self.root)
        self.slope = torch.where(take, slope, self.slope)
        self.objective = torch.where(accepted, objective, self.objective)
        self.fresh = self.fresh & ~accepted

        residual = gates - (gates - gradient).clamp(0, self.upper)
        rest = accepted & (residual.norm(dim=1) <= self.threshold)
        reopen = take & (gates == 0) & (gradient < 0)
        closing = take & (gates > 0) & (gates < CLOSED) & (gradient > 0)
        self.root = torch.where(closing, 0.0, torch.where(reopen, CLOSED ** (1 / POWER), self.root))
        shut = (self.root == 0)[:, None]
        self.steps, self.changes = self.steps.masked_fill(shut, 0.0), self.changes.masked_fill(shut, 0.0)
        self.converged = self.converged | (rest & feasible & ~closing.any(1))
        self.accepted = accepted
        self._hold_prediction(accepted, feasible, rest & ~feasible)

    def _hold_prediction(self, accepted: Tensor, feasible: Tensor, dead: Tensor) -> None:
        """Weigh the prediction more where it stays lost; where nothing leads back to it, return to the best point."""
        self.lost = torch.where(accepted, torch.where(feasible, 0, self.lost + 1), self.lost)
        self.held = torch.where(accepted, torch.where(feasible, self.held + 1, 0), self.held)
        more = dead | (self.lost >= LOST_FOR)
        # lost once on the way down it may hold by itself later
        less = ~self.pardoned & (self.extra > 0) & (self.held >= HELD_FOR)
        self.pardoned = self.pardoned | less
        self.extra = torch.where(more, (2 * self.extra).clamp(min=EXTRA), torch.where(less, 0.0, self.extra))
        self.lost = torch.where(more, 0, self.lost)
        self.root = torch.where(dead[:, None], self.best ** (1 / POWER), self.root)
        self.reach = torch.where(dead, self.reach / 2, self.reach)
        self.fresh = self.fresh | more | less

    def advance(self) -> None:
        """Choose the next trial point of every row."""
        downhill = -self._inverse_times_slope()
        stuck = self.length < 1e-4  # the model misleads: forget it and go down the slope
        uphill = (downhill * self.slope).sum(1) >= 0
        forget = stuck | uphill
        self.steps = torch.where(forget[:, None, None], 0.0, self.steps)
        self.changes = torch.where(forget[:, None, None], 0.0, self.changes)
        plain = -self.slope * (self.reach / self.slope.abs().amax(1).clamp(min=1e-30))[:, None]
        downhill = torch.where(forget[:, None], plain, downhill)
        downhill = downhill * (self.reach / torch.maximum(downhill.abs().amax(1), self.reach))[:, None]
        new = self.accepted | stuck
        self.direction = torch.where(new[:, None], downhill, self.direction)
        self.length = torch.where(stuck, 0.1, self.length)
        moved = (self.root + self.length[:, None] * self.direction).clamp(-self.highest, self.highest)
        self.trial = torch.where(self.fresh[:, None], self.root, moved)

    def _inverse_times_slope(self) -> Tensor:
        """Return the two-loop product [B, total] of the inverse quasi-Newton model and the slope."""
        product = (self.steps * self.changes).sum(2)
        square = (self.changes**2).sum(2)
        usable = product > 1e-8 * (square * (self.steps**2).sum(2)).sqrt()
        inverse = torch.where(usable, 1 / torch.where(usable, product, 1.0), 0.0)
        found, weights = self.slope, []
        for pair in range(PAIRS):
            weight = inverse[:, pair] * (self.steps[:, pair] * found).sum(1)
            found = found - weight[:, None] * self.changes[:, pair]
            weights.append(weight)
        newest = usable.to(torch.int8).argmax(1, keepdim=True)
        scale = (product / square.clamp(min=torch.finfo(square.dtype).tiny)).gather(1, newest)[:, 0]
        first = self.reach / self.slope.abs().amax(1).clamp(min=1e-30)
        found = found * torch.where(usable.any(1), scale, first)[:, None]
        for pair in reversed(range(PAIRS)):
            weight = inverse[:, pair] * (self.changes[:, pair] * found).sum(1)
            found = found + (weights[pair] - weight)[:, None] * self.steps[:, pair] * usable[:, pair, None]
        return found

    def write(self, result: Solution) -> None:
        """Write the best points of all rows to their places in ``result``."""
        result.gates[self.place] = self.best
        result.objective[self.place] = self.lowest
        result.passes[self.place] = self.passes
        result.converged[self.place] = self.converged

    def select(self, rows: Tensor) -> None:
        """Go on with ``rows`` only."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])
