"""Routes that pass through every layer: the largest gamma, image by image, at which no layer closes completely."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from convsmith.interpretation.routes import Routes

#: searches at most, the factor by which gamma falls until a route opens, and the ratio at which the bracket is closed
ROUNDS, FALL, RATIO = 9, 4.0, 1.5
#: nats within which biases alone say what the network says, so that no other route is wanted in their place
ENOUGH = 0.01
#: finds the routes of some rows again: (rows [R] int64, gammas [R]) -> Routes of R images
Again = Callable[[Tensor, Tensor], Routes]
#: finds the routes of some rows along growing gammas, each from the one before: rows [R] int64 -> Routes by gamma
Path = Callable[[Tensor], list[Routes]]


def open_layers(again: Again, routes: Routes, least: float = 0.0, path: Path | None = None) -> Routes:
    """Find those of ``routes`` with a closed layer again, at a smaller gamma of their own; return all routes.

    Above a critical weight (as above the lambda_max of the lasso) the cheapest point closes a whole layer: behind it
    nothing depends on the image any more, the biases alone happen to predict its class, and the route says nothing
    about the image. The set of gates that leave no layer closed is not closed itself (its infimum lies at the closed
    layer), so "at least one gate positive" is no constraint one could project on: the gate left would shrink to
    whatever floor is set and carry as little. The critical weight is a quantity of the problem. Row by row gamma falls
    by factors of 4 until a route is open, then bisection on log gamma closes in to a ratio of 1.5; the open route at
    the largest gamma is returned, with that gamma in ``Routes.gamma``.

    A search that has not converged counts as closed: it may be open for want of time. No gamma below ``least`` is
    tried: there rounding decides. Rows whose closed route diverges by more than 0.01 nats first go along ``path``; its
    last open route that keeps the prediction, converged or not (flagged), is the answer if the bracket finds none, and
    the bracket is given up where it meets an open search without convergence, as smaller gammas take longer still. Rows
    that do not open (the biases alone say almost what the network says, or every channel of a layer is silent) are
    returned as they came, flagged as before.
    """
    shut = routes.flags.closed.any(1)
    if not bool(shut.any()):
        return routes
    spare, spared = routes, torch.zeros_like(shut)
    rows = (shut & (routes.divergence > ENOUGH)).nonzero()[:, 0]
    if path is not None and len(rows):
        for stage in path(rows):
            good = stage.kept & ~stage.flags.closed.any(1)
            spare, spared[rows[good]] = _placed(spare, stage, rows, good), True
    high = routes.gamma.double().clone()
    low = torch.zeros_like(high)  # 0: no open route known yet
    for _ in range(ROUNDS):
        rows = (shut & torch.where(low > 0, high > RATIO * low, high > least)).nonzero()[:, 0]
        if not len(rows):
            break
        trial = torch.where(low > 0, (low * high).sqrt(), (high / FALL).clamp(min=least))[rows]
        found = again(rows, trial)
        closed = found.flags.closed.any(1)
        still = closed | ~found.converged
        shut[rows[~closed & ~found.converged & spared[rows] & (low[rows] == 0)]] = False
        high[rows[still]] = trial[still]
        low[rows[~still]] = trial[~still]
        routes = _placed(routes, found, rows, ~still)
    late = (spared & (low == 0)).nonzero()[:, 0]
    return _placed(routes, spare[late], late, torch.ones_like(late, dtype=torch.bool))


def _placed(routes: Routes, found: Routes, rows: Tensor, chosen: Tensor) -> Routes:
    """Return ``routes`` with the ``chosen`` [R] rows of ``found`` at their places ``rows`` [R]."""
    order = torch.arange(len(routes), device=rows.device)
    order[rows[chosen]] = len(routes) + chosen.nonzero()[:, 0]
    return Routes.concatenate([routes, found])[order]
