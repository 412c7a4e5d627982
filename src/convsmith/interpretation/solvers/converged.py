"""A solver that converges, without a step size: limited-memory BFGS on roots of the gates, decided row by row."""

from __future__ import annotations

from copy import copy
from functools import partial

import torch
from torch import Tensor

from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.solvers.problem import Evaluation, Solution, beside_blank, evaluate, least_cross_entropy
from convsmith.interpretation.solvers.quasi_newton import inverse_times
from convsmith.interpretation.solvers.walk import MOST, walk

#: gates are cubes of what moves, so that a gate near 0 takes small steps and a large one large steps
POWER = 3
#: pairs of the quasi-Newton model; largest change of a root in one step (roots start at 1)
PAIRS, REACH = 10, 0.1
#: a gate below this that the objective wants smaller is closed for good, unless the optimality test reopens it
CLOSED = 1e-3
#: share of the objective that closing gates may still save at rest
SAVING = 0.003
#: growth of the largest step after one that was taken
GROW = 4.0
#: share of the objective that the model still promises at rest, at so many points in a row
PROMISE, CALM = 0.001, 5
#: sufficient decrease of a step
DECREASE = 1e-4
#: accepted points in a row without the prediction, or size of the projected gradient in units of the threshold without
#: it, at which the cross-entropy weighs more; by how much; factor after every accepted point with it, down to the floor
LOST_FOR, NEAR, RAISE, FALL = 20, 5.0, 4.0, 0.85
#: a search at rest within this share of its passes begins once more, from gates of so much where closed, twice that
#: where open
EARLY, REOPENED = 1 / 2, 0.4
#: a row whose projected gradient after so many passes is so many times that of open gates went astray: it goes back to
#: its start and walks for so many passes
LOOK, STEEP, WALK = 20, 3.0, 40
#: beside a blank and after such a walk: how hard the predicted class is kept ahead once the walk is over
STIFF = 10.0
#: passes after which the gates themselves move, the same after a second beginning, the largest change of a gate then
FINISH, LATER, STEP = 25, 15, 1.0
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
    tolerance: float = 0.01,
    blank: Tensor | None = None,
) -> Solution:
    """Minimise every row's objective until its projected gradient is small beside that of open gates.

    With ``lambda = z^3`` each row takes limited-memory BFGS steps in z (10 pairs), no root moving by more than 0.1. A
    point counts if the objective falls sufficiently (Armijo, 1e-4); else the next step is at most half as long, and the
    model learns from the refused point too: at a kink (rectifiers, maxima) only that shows the other side's slope.
    Nothing depends on the other rows or on a step size. The first steps shrink all gates together until little of the
    image is left, and from there those that carry the prediction grow. From pass 25 on, at a point with the prediction,
    the gates themselves move, by at most 1, clipped to [0, upper], with the model of those alone that no slope holds
    at an end: a gate on its way to 0 slows down in z, and here it arrives (two-metric projection; Bertsekas, SIAM
    J. Control and Optimization 1982). Gates below 1e-3 that the objective wants smaller are set to 0. A row in which
    the shrinking leaves no gradient goes back to its best gates, the cross-entropy weighing more. A row at rest within
    half of its passes begins once more, from gates of 0.4 where closed and at most 0.8 where open (from open gates and
    a heavier cross-entropy, where it rests without a gradient), and keeps the better of the two points.

    In a deep network under a small gamma the shrinking leads where slopes are hundreds of times those of open gates and
    every step is short. A row whose projected gradient at pass 20 is more than 3 times that of open gates goes back to
    its start and walks from there (`solvers.walk`), 40 passes, as every row beside a blank does, and goes on likewise.

    With ``blank`` [B, K] ``network`` holds the images, then a blank beside each, and ``blank`` are the full network's
    logits of these. The cross-entropy is then 1/4 of the answer's own and 3/4 of that of ``z(image) - z(blank) +
    blank``, z being the gated logits, and the prediction must stay in both (see `beside_blank`): constants that closed
    layers and biases make cancel. Such a row does not shrink and begin again: it walks for two thirds of its passes, 60
    at most, and goes on in the gates from there, the predicted class held ahead by 0.1 logits. It also is at rest where
    the model promises less than 0.1 % of the objective at five accepted points in a row.

    Stop: ``|lambda - clip(lambda - g, 0, upper)| <= tolerance * gamma * sqrt(total)``, g the gradient by lambda, and
    gates that would rather close weigh at most 0.3 % of the objective. The right side is the left one at open gates,
    where the cross-entropy has no gradient. The test sees closed gates that would rather open (g < 0) and opens them.
    Rows that meet it leave the batch, "converged"; the others stop after ``passes``. The problem is not convex: a
    converged row is a local minimum, one of several. A row that ends where no point can be more than 0.3 % better
    has converged as well: no objective is below the entropy of what is compared with (`least_cross_entropy`).

    Where a row comes to rest without its prediction the cross-entropy weighs four times as much, then ever less, down
    to a floor that rises by half each time it was too low; the best point is always judged by the objective asked for,
    and never gets worse. Nocedal and Wright, Numerical Optimization, 2nd ed., algorithm 3.1; Byrd, Nocedal, Schnabel,
    Math. Programming 1994, (3.1).
    """
    rows = _Rows(probabilities, gamma, start, upper, tolerance, passes, blank)
    result = Solution(
        start.clone(),
        torch.full_like(gamma, torch.inf),
        torch.zeros(len(start), dtype=torch.long, device=start.device),
        torch.zeros(len(start), dtype=torch.bool, device=start.device),
    )
    if blank is not None:
        rows.walk(network, start, min(MOST, 2 * passes // 3))
    elif passes > LOOK:
        _search(network, rows, LOOK, result)
        network.restore()
        astray = rows.steepness > STEEP
        again, rows = rows.part(astray), rows.part(~astray)
        if len(again.place):
            network.select(again.place)
            again.walk(network, start[again.place], min(WALK, 2 * (passes - LOOK) // 3))
            _search(network, again, passes, result)
            network.restore()
        network.select(rows.place)
    _search(network, rows, passes, result)
    return result


def _search(network: GatedNetwork, rows: _Rows, last: int, result: Solution) -> None:
    """Evaluate and advance ``rows`` up to pass number ``last``, those at rest leaving; write them to ``result``."""
    for taken in range(rows.taken + 1, last + 1):
        if taken % _CHECK_EVERY == 1:
            live = ~rows.converged
            count = int(live.sum())
            if count == 0:
                break
            if count <= 0.75 * len(live):
                rows.write(result)
                network.select(live if rows.blank is None else live.repeat(2))
                rows.select(live)
        rows.judge(rows.look(network, rows.trial.abs() ** rows.power))
        rows.advance()
        rows.taken = taken
    rows.write(result)


class _Rows:
    """Everything the converging solver knows about each unfinished image; first dimension the row."""

    def __init__(
        self,
        probabilities: Tensor,
        gamma: Tensor,
        start: Tensor,
        upper: float,
        tolerance: float,
        passes: int,
        blank: Tensor | None,
    ) -> None:
        rows, total = start.shape
        self.probabilities, self.gamma = probabilities, gamma
        self.target: Tensor | None = None
        self.blank = blank
        if blank is not None:
            self.target, self.blank = beside_blank(probabilities, blank)
        self.stiffness: Tensor | None = None
        self.place, self.taken = torch.arange(rows, device=start.device), 0
        self.upper, self.early = upper, EARLY * passes
        self.power = torch.full_like(gamma, float(POWER))[:, None]
        # below, rounding of the network's gradient (some 100 eps) hides what the test asks for
        least = 100 * torch.finfo(start.dtype).eps / tolerance
        self.threshold = tolerance * gamma.clamp(min=least, max=1) * total**0.5
        self.open = self.threshold / tolerance  # size of the projected gradient at open gates

        self.trial = start.clamp(0, upper) ** (1 / POWER)
        self.root, self.pull = self.trial.clone(), torch.zeros_like(start)
        self.entropy = torch.full_like(gamma, torch.inf)
        self.steps = start.new_zeros(rows, PAIRS, total)
        self.changes = start.new_zeros(rows, PAIRS, total)
        self.reach = torch.full_like(gamma, REACH)
        self.radius = self.reach.clone()
        self.finish = torch.full_like(self.place, FINISH)
        self.weight, self.floor = torch.ones_like(gamma), torch.ones_like(gamma)
        self.fresh = torch.ones_like(self.place, dtype=torch.bool)
        self.lost, self.raised = torch.zeros_like(self.place), torch.zeros_like(self.fresh)
        self.calm, self.accepted = torch.zeros_like(self.place), torch.zeros_like(self.fresh)
        self.converged, self.reopened = torch.zeros_like(self.fresh), torch.zeros_like(self.fresh)
        self.steepness = torch.zeros_like(gamma)  # size of the projected gradient in units of that of open gates
        self.at_rest = torch.full_like(gamma, -torch.inf)  # the objective where the row came to rest
        self.passes = torch.zeros_like(self.place)
        # all ones keeps the prediction, and its cross-entropy is the least there is
        self.best, bound = torch.ones_like(start), least_cross_entropy(probabilities, self.target)
        self.lowest = bound + gamma * total
        self.enough = bound + SAVING * torch.minimum(bound, gamma * total)

    def look(self, network: GatedNetwork, gates: Tensor) -> Evaluation:
        """Evaluate ``gates`` [B, total]."""
        stiff = self.stiffness
        return evaluate(network, gates, self.probabilities, blank=self.blank, target=self.target, stiffness=stiff)

    def walk(self, network: GatedNetwork, start: Tensor, passes: int) -> None:
        """Go on, the gates moving, from where a walk of ``passes`` from ``start`` ends; no second beginning then."""
        if not passes:
            return
        gates = walk(partial(self.look, network), start.clamp(0, self.upper), self.gamma, self.upper, passes)
        self.passes, self.taken = self.passes + passes, self.taken + passes
        self.stiffness = torch.full_like(self.gamma, STIFF)
        self.weight, self.floor = torch.ones_like(self.gamma), torch.ones_like(self.gamma)
        self.lost, self.raised = torch.zeros_like(self.lost), torch.zeros_like(self.raised)
        self.root, self.reopened = gates ** (1 / POWER), torch.ones_like(self.reopened)
        self._finish(torch.ones_like(self.fresh))
        self.trial = self.root

    def slope(self, root: Tensor, pull: Tensor) -> Tensor:
        """Return the derivative by the roots, [B, total], ``pull`` being that of the cross-entropy by the gates."""
        gradient = self.weight[:, None] * pull + self.gamma[:, None]
        rooted = gradient * self.power * root.abs() ** (self.power - 1) * root.sign()
        return torch.where(self.power > 1, rooted, gradient)  # at 0 a gate itself has a slope, a root has none

    def judge(self, here: Evaluation) -> None:
        """Accept the evaluated point of a row or shorten its step; remember it if it is the row's best."""
        gates = self.trial.abs() ** self.power
        asked = here.cross_entropy + self.gamma * gates.sum(1)
        feasible = here.kept
        live = ~self.converged  # a converged row never changes, however long it stays in the batch
        self.passes += live
        better = live & feasible & (asked < self.lowest)
        self.best = torch.where(better[:, None], gates, self.best)
        self.lowest = torch.where(better, asked, self.lowest)

        objective = asked - here.cross_entropy + self.weight * here.followed
        before = self.weight * self.entropy + self.gamma * (self.root.abs() ** self.power).sum(1)
        slope = self.slope(self.root, self.pull)
        step, change = self.trial - self.root, self.slope(self.trial, here.gradient) - slope
        expected = (slope * step).sum(1)
        slack = 8 * torch.finfo(objective.dtype).eps * before.abs().nan_to_num(posinf=0.0)
        accepted = self.fresh | (objective <= before + DECREASE * expected.clamp(max=0) + slack)

        pair = (~self.fresh & change.isfinite().all(1))[:, None, None]
        self.steps = torch.where(pair, torch.cat([self.steps[:, 1:], step[:, None]], 1), self.steps)
        self.changes = torch.where(pair, torch.cat([self.changes[:, 1:], change[:, None]], 1), self.changes)
        curvature = (objective - before - expected).clamp(min=torch.finfo(objective.dtype).tiny)
        shorter = (-expected / (2 * curvature)).nan_to_num(nan=0.1, posinf=0.5).clamp(0.1, 0.5)
        far = step.abs().amax(1)
        self.radius = torch.where(accepted, (self.radius * GROW).minimum(self.reach), far * shorter)
        self.accepted, self.value = accepted, torch.where(accepted, objective, before)

        take = accepted[:, None]
        self.root = torch.where(take, self.trial, self.root)
        self.pull = torch.where(take, here.gradient, self.pull)
        self.entropy = torch.where(accepted, here.followed, self.entropy)
        self.fresh = self.fresh & ~accepted

        gradient = self.weight[:, None] * here.gradient + self.gamma[:, None]
        residual = gates - (gates - gradient).clamp(0, self.upper)
        size = residual.norm(dim=1)
        self.steepness = torch.where(accepted, size / self.open, self.steepness)
        # what the gates still to be closed would save by themselves
        saving = (gates * gradient.clamp(min=0)).sum(1)
        still = (size <= self.threshold) & (saving <= SAVING * objective)
        rest = accepted & (still | (self.calm >= CALM)) & (self.weight <= self.floor)
        reopen = take & (gates == 0) & (gradient < 0) & (self.power > 1)
        closing = take & (gates > 0) & (gates < CLOSED) & (gradient > 0)
        self.root = torch.where(closing, 0.0, torch.where(reopen, CLOSED ** (1 / self.power), self.root))
        unfinished = closing.any(1)
        self.fresh = self.fresh | (rest & unfinished)  # what is left without the gates just closed
        rest = rest & feasible & ~unfinished
        self._rest(rest)
        self._finish(take[:, 0] & feasible & (self.passes >= self.finish))
        self._weigh(accepted, feasible, accepted & ~feasible & (size <= NEAR * self.threshold))

    def _rest(self, rest: Tensor) -> None:
        """End the rows at rest, or let them begin again from their best gates."""
        again = rest & ~self.reopened & (self.passes <= self.early)
        self.converged = self.converged | (rest & ~again)
        self.reopened = self.reopened | again
        self.at_rest = torch.where(rest, self.lowest, self.at_rest)
        start = self.best.clamp(max=REOPENED) + REOPENED
        dead = again & (self.pull.abs().amax(1) < self.gamma)  # nothing to climb back on
        start = torch.where(dead[:, None], 1.0, start)
        self.weight = torch.where(dead, RAISE, self.weight)
        self.power = torch.where(again[:, None], float(POWER), self.power)
        self.root = torch.where(again[:, None], start ** (1 / POWER), self.root)
        self.reach, self.radius = (torch.where(again, REACH, now) for now in (self.reach, self.radius))
        self.finish = torch.where(again, self.passes + LATER, self.finish)
        self._forget(again)

    def _finish(self, rows: Tensor) -> None:
        """Let the gates of ``rows`` [B] bool move instead of their roots."""
        rows = rows & (self.power[:, 0] > 1)
        turned = rows[:, None]
        self.root = torch.where(turned, self.root.abs() ** self.power, self.root)
        self.power = torch.where(turned, 1.0, self.power)
        self.reach = torch.where(rows, STEP, self.reach)
        self.radius = torch.where(rows, STEP, self.radius)
        self._forget(rows)

    def _forget(self, rows: Tensor) -> None:
        """Look at the point of ``rows`` [B] bool again, without a model of its surroundings."""
        self.steps = self.steps.masked_fill(rows[:, None, None], 0.0)
        self.changes = self.changes.masked_fill(rows[:, None, None], 0.0)
        self.fresh, self.calm = self.fresh | rows, self.calm.masked_fill(rows, 0)

    def _weigh(self, accepted: Tensor, feasible: Tensor, dead: Tensor) -> None:
        """Let the weight fall to its floor; raise both where the prediction stays lost, back at the best point."""
        down = torch.maximum(self.weight * FALL, self.floor)
        self.lost = torch.where(accepted, torch.where(feasible, 0, self.lost + 1), self.lost)
        more = dead | (self.lost >= LOST_FOR)
        again = more & (self.weight <= self.floor) & self.raised
        self.floor = torch.where(again, self.floor * 1.5, self.floor)
        self.weight = torch.where(more, self.weight * RAISE, torch.where(accepted & feasible, down, self.weight))
        self.raised = self.raised | more
        self.lost = torch.where(more, 0, self.lost)
        gone = more & (self.weight * self.pull.abs().amax(1) < self.gamma)
        self.root = torch.where(gone[:, None], self.best ** (1 / self.power), self.root)
        self.fresh = self.fresh | gone

    def advance(self) -> None:
        """Choose the next trial point of every row."""
        slope, highest = self.slope(self.root, self.pull), self.upper ** (1 / self.power)
        pinned = (self.root == 0) & ((self.power > 1) | (slope > 0))
        pinned = pinned | ((self.root.abs() >= highest) & (slope * self.root < 0))
        slope = slope.masked_fill(pinned, 0.0)
        stuck = self.radius < 1e-4 * self.reach  # the model misleads: forget it and go down the slope
        self.radius = torch.where(stuck, self.reach, self.radius)
        downhill = -inverse_times(self.steps, self.changes, slope, pinned, self.reach)
        promise = -(downhill * slope).sum(1) / 2
        forget = stuck | (promise <= 0) | ~downhill.isfinite().all(1)
        if self.stiffness is not None:
            small = ~forget & (promise <= PROMISE * self.value) & (self.steps.abs().amax((1, 2)) > 0)
            self.calm = torch.where(self.accepted, torch.where(small, self.calm + 1, 0), self.calm)
        self.steps = torch.where(forget[:, None, None], 0.0, self.steps)
        self.changes = torch.where(forget[:, None, None], 0.0, self.changes)
        plain = -slope * (self.radius / slope.abs().amax(1).clamp(min=1e-30))[:, None]
        downhill = torch.where(forget[:, None], plain, downhill)
        downhill = downhill * (self.radius / torch.maximum(downhill.abs().amax(1), self.radius))[:, None]
        self.fresh = self.fresh | stuck  # closing gates has moved the point a little: look at it again
        moved = self.root + downhill
        moved = moved.clamp(torch.where(self.power > 1, -highest, 0.0), highest)
        self.trial = torch.where(self.fresh[:, None], self.root, moved)

    def write(self, result: Solution) -> None:
        """Write the best points of all rows to their places in ``result``."""
        result.gates[self.place] = self.best
        result.objective[self.place] = self.lowest
        result.passes[self.place] = self.passes
        result.converged[self.place] = self.converged | (self.lowest == self.at_rest) | (self.lowest <= self.enough)

    def select(self, rows: Tensor) -> None:
        """Go on with ``rows`` only."""
        for name, value in list(vars(self).items()):
            if isinstance(value, Tensor):
                setattr(self, name, value[rows])

    def part(self, rows: Tensor) -> _Rows:
        """Return ``rows`` [B] bool as rows of their own."""
        part = copy(self)
        part.select(rows)
        return part
