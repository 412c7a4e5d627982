"""Routes that pass through every layer: the largest gamma, image by image, at which the image still decides."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from convsmith.interpretation.routes import Routes

#: searches at most, the factor by which gamma falls until a route opens, and the ratio at which the bracket is closed
ROUNDS, FALL, RATIO = 9, 4.0, 1.5
#: finds the routes of some rows again: (rows [R] int64, gammas [R]) -> Routes of R images
Again = Callable[[Tensor, Tensor], Routes]


def open_layers(again: Again, routes: Routes, least: float = 0.0) -> Routes:
    """Find those of ``routes`` again, at a smaller gamma of their own, in which a layer passes nothing of the image on.

    A layer is open if the prediction's gradient through it reaches the image (`RouteFlags.open`); a gate above zero is
    not enough, as what is left of a layer may be a constant.
    Above a critical weight (as above the lambda_max of the lasso) the cheapest point closes a whole layer: behind it
    nothing depends on the image any more, the biases alone happen to predict its class, and the route says nothing
    about the image. The set of gates that leave no layer closed is not closed itself (its infimum lies at the closed
    layer), so "at least one gate positive" is no constraint one could project on: the gate left would shrink to
    whatever floor is set and carry as little. The critical weight is a quantity of the problem. Row by row gamma falls
    by factors of 4 until a route is open, then bisection on log gamma closes in to a ratio of 1.5; the open route at
    the largest gamma is returned, with that gamma in ``Routes.gamma``.

    A search at a smaller gamma that has not converged counts as closed: it may be open for want of time. No gamma
    below ``least`` is tried: there rounding decides. Rows that do not open above it (the biases alone say almost what
    the network says, or every channel of a layer is silent) are returned as they came, flagged as before.
    """
    shut = ~routes.flags.open.all(1)
    if not bool(shut.any()):
        return routes
    high = routes.gamma.double().clone()
    low = torch.zeros_like(high)  # 0: no open route known yet
    for _ in range(ROUNDS):
        rows = (shut & torch.where(low > 0, high > RATIO * low, high > least)).nonzero()[:, 0]
        if not len(rows):
            break
        trial = torch.where(low > 0, (low * high).sqrt(), (high / FALL).clamp(min=least))[rows]
        found = again(rows, trial)
        still = ~found.flags.open.all(1) | ~found.converged
        high[rows[still]] = trial[still]
        low[rows[~still]] = trial[~still]
        order = torch.arange(len(routes), device=rows.device)
        order[rows[~still]] = len(routes) + (~still).nonzero()[:, 0]
        routes = Routes.concatenate([routes, found])[order]
    return routes
