"""A solver that converges, without a step size: limited-memory BFGS on roots of the gates, decided row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.solvers.problem import Solution
from convsmith.interpretation.solvers.rows import STIFF, Rows
from convsmith.interpretation.solvers.walk import MOST

#: a row whose projected gradient after so many passes is so many times that of open gates went astray: it goes back to
#: its start and walks for so many passes
LOOK, STEEP, WALK = 20, 3.0, 40
#: the stop test of rows happens once in so many passes, so that the device is asked to wait only then
_CHECK_EVERY = 5


def solve_converged(
    network: GatedNetwork,
    probabilities: Tensor,
    gamma: Tensor,
    start: Tensor,
    *,
    passes: int = 300,
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
    a quarter of its passes begins once more, from gates of 0.4 where closed and at most 0.8 where open (from open gates
    and a heavier cross-entropy, where it rests without a gradient), and keeps the better of the two points.

    In a deep network under a small gamma the shrinking leads where slopes are hundreds of times those of open gates and
    every step is short. A row whose projected gradient at pass 20 is more than 3 times that of open gates goes back to
    its start and walks from there (`solvers.walk`), 40 passes, as every row beside a blank does, and goes on likewise.

    With ``blank`` [B, K] ``network`` holds the images, then a blank beside each, and ``blank`` are the full network's
    logits of these. The cross-entropy is then 1/4 of the answer's own and 3/4 of that of ``z(image) - z(blank) +
    blank``, z being the gated logits, and the prediction must stay in both (see `beside_blank`): constants that closed
    layers and biases make cancel. Such a row does not shrink and begin again: it walks for two thirds of its passes, 60
    at most, and goes on in the gates from there, the predicted class kept ahead from its first pass on.

    Stop: ``|lambda - clip(lambda - g, 0, upper)| <= tolerance * gamma * sqrt(total)``, g the gradient by lambda, and
    gates that would rather close weigh at most 0.3 % of the objective, or the best point has got no better by 0.1 % for
    30 passes (kinks let such gates neither close nor rest). The right side is the left one at open gates,
    where the cross-entropy has no gradient. The test sees closed gates that would rather open (g < 0) and opens them.
    Rows that meet it leave the batch, "converged"; the others stop after ``passes``. The problem is not convex: a
    converged row is a local minimum, one of several. A row that ends where no point can be more than 0.3 % better
    has converged as well: no objective is below the entropy of what is compared with (`least_cross_entropy`).

    Where a row loses its prediction for long, or comes to rest without it, the cross-entropy weighs four times as much,
    then ever less, down to once. Where that happens again the least objective lies at the edge of the prediction: the
    row is then charged for what the predicted class lacks of a lead (quadratic penalty, see `evaluate`; four times as
    much each further time, from its best point), and is at rest too where the model promises less than 0.1 % of the
    objective at five accepted points in a row, as every row after a walk. The best point is always judged by the
    objective asked for, and never gets worse. Nocedal and Wright, Numerical Optimization, 2nd ed., algorithm 3.1 and
    section 17.1; Byrd, Nocedal, Schnabel, Math. Programming 1994, (3.1).
    """
    rows = Rows(probabilities, gamma, start, upper, tolerance, passes, blank)
    result = Solution(
        start.clone(),
        torch.full_like(gamma, torch.inf),
        torch.zeros(len(start), dtype=torch.long, device=start.device),
        torch.zeros(len(start), dtype=torch.bool, device=start.device),
    )
    if blank is not None:
        rows.stiffness = torch.full_like(gamma, STIFF)
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


def _search(network: GatedNetwork, rows: Rows, last: int, result: Solution) -> None:
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
