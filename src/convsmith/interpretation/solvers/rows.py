"""What the converging solver knows about each unfinished image, and how a row goes from point to point."""

from __future__ import annotations

from copy import copy
from functools import partial

import torch
from torch import Tensor

from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.solvers.problem import (
    Evaluation,
    Solution,
    beside_blank,
    evaluate,
    headroom,
    least_cross_entropy,
)
from convsmith.interpretation.solvers.quasi_newton import inverse_times
from convsmith.interpretation.solvers.walk import walk

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
#: share of the objective that the model still promises at rest, at so many points in a row, or that the search still
#: gained in so many passes
PROMISE, CALM, STALL = 0.001, 5, 30
#: sufficient decrease of a step
DECREASE = 1e-4
#: accepted points in a row without the prediction, or size of the projected gradient in units of the threshold without
#: it, at which the row is helped: the cross-entropy weighs more, falling back at every accepted point with it, and from
#: the second time on the predicted class is kept ahead, by so many nats at first; factors of raising and of falling
LOST_FOR, NEAR, STIFF, RAISE, FALL = 20, 5.0, 0.1, 4.0, 0.85
#: a search at rest within this share of its passes begins once more, from gates of so much where closed, twice that
#: where open
EARLY, REOPENED = 1 / 4, 0.4
#: passes after which the gates themselves move, the same after a second beginning, the largest change of a gate then
FINISH, LATER, STEP = 25, 15, 1.0


class Rows:
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
        self.stiffness, self.ahead = torch.zeros_like(gamma), headroom(probabilities, self.target)
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
        self.weight, self.fresh = torch.ones_like(gamma), torch.ones_like(self.place, dtype=torch.bool)
        self.lost, self.raised = torch.zeros_like(self.place), torch.zeros_like(self.fresh)
        self.calm, self.accepted = torch.zeros_like(self.place), torch.zeros_like(self.fresh)
        self.converged, self.reopened = torch.zeros_like(self.fresh), torch.zeros_like(self.fresh)
        # an objective, and the pass since when the row has not fallen clearly below it
        self.mark, self.since = torch.full_like(gamma, torch.inf), torch.zeros_like(self.place)
        self.steepness = torch.zeros_like(gamma)  # size of the projected gradient in units of that of open gates
        self.at_rest = torch.full_like(gamma, -torch.inf)  # the objective where the row came to rest
        self.passes = torch.zeros_like(self.place)
        # all ones keeps the prediction, and its cross-entropy is the least there is
        self.best, bound = torch.ones_like(start), least_cross_entropy(probabilities, self.target)
        self.lowest = bound + gamma * total
        self.enough = bound + SAVING * torch.minimum(bound, gamma * total)

    def look(self, network: GatedNetwork, gates: Tensor) -> Evaluation:
        """Evaluate ``gates`` [B, total]."""
        hold = self.stiffness, self.ahead
        return evaluate(network, gates, self.probabilities, blank=self.blank, target=self.target, hold=hold)

    def walk(self, network: GatedNetwork, start: Tensor, passes: int) -> None:
        """Go on, the gates moving, from where a walk of ``passes`` from ``start`` ends; no second beginning then."""
        if not passes:
            return
        gates = walk(partial(self.look, network), start.clamp(0, self.upper), self.gamma, self.upper, passes)
        self.passes, self.taken = self.passes + passes, self.taken + passes
        self.stiffness = torch.full_like(self.gamma, STIFF)
        self.weight = torch.ones_like(self.gamma)
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
        falls = self.lowest < (1 - PROMISE) * self.mark
        self.mark, self.since = torch.where(falls, self.lowest, self.mark), torch.where(falls, self.passes, self.since)
        stalled = self.passes - self.since >= STALL
        still = (size <= self.threshold) & ((saving <= SAVING * objective) | stalled)
        rest = accepted & (still | (self.calm >= CALM)) & (self.weight <= 1)
        reopen = take & (gates == 0) & (gradient < 0) & (self.power > 1)
        closing = take & (gates > 0) & (gates < CLOSED) & (gradient > 0)
        self.root = torch.where(closing, 0.0, torch.where(reopen, CLOSED ** (1 / self.power), self.root))
        unfinished = closing.any(1)
        self.fresh = self.fresh | (rest & unfinished)  # what is left without the gates just closed
        rest = rest & feasible & ~unfinished
        self._rest(rest)
        self._finish(take[:, 0] & feasible & (self.passes >= self.finish))
        self._hold(accepted, feasible, accepted & ~feasible & (size <= NEAR * self.threshold))

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
        self.since = torch.where(rows, self.passes, self.since)

    def _hold(self, accepted: Tensor, feasible: Tensor, dead: Tensor) -> None:
        """Where the prediction stays lost weigh the cross-entropy more, then keep the class ahead, harder each time."""
        self.lost = torch.where(accepted, torch.where(feasible, 0, self.lost + 1), self.lost)
        lost = dead | (self.lost >= LOST_FOR)
        first, again = lost & ~self.raised, lost & self.raised
        falling = torch.where(accepted & feasible, (self.weight * FALL).clamp(min=1), self.weight)
        self.weight = torch.where(first, self.weight * RAISE, falling)
        self.stiffness = torch.where(again, (self.stiffness * RAISE).clamp(min=STIFF), self.stiffness)
        self.raised, self.lost = self.raised | lost, self.lost.masked_fill(lost, 0)
        gone = lost & ((self.weight * self.pull.abs().amax(1) < self.gamma) | (self.stiffness > STIFF))
        self.root = torch.where(gone[:, None], self.best ** (1 / self.power), self.root)
        self.fresh = self.fresh | gone
        self._forget(again)

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
        modelled = (self.stiffness > 0) & ~forget & (self.steps.abs().amax((1, 2)) > 0)
        calm = torch.where(modelled & (promise <= PROMISE * self.value), self.calm + 1, 0)
        self.calm = torch.where(self.accepted, calm, self.calm)
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

    def part(self, rows: Tensor) -> Rows:
        """Return ``rows`` [B] bool as rows of their own."""
        part = copy(self)
        part.select(rows)
        return part
