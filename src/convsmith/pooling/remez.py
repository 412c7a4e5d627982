"""The best odd quintics for the matrix sign, found by Remez exchange, and the schedule they make for matrix roots.

With ``P = x^2`` the factor ``u(p) = a + b p + c p^2`` of `convsmith.pooling.product_form` is the odd quintic
``x u(x^2) = a x + b x^3 + c x^5`` on the singular value x. If x lies in [l, u], the quintic that minimises
``max |1 - x u(x^2)|`` there equioscillates at four points l < q < r < u, and maps [l, u] onto [1 - E, 1 + E]: the next
step's interval. The composition of these optimal steps is itself optimal.

Paper: Amsel, Persson, Musco, Gower, "The Polar Express: Optimal Matrix Sign Methods and Their Application to the Muon
Algorithm" (2025), theorem 3.1 and algorithm 1.
Differs from the paper: the coupled root where only the matrix is known (`convsmith.pooling.minimax` takes the polar
factor of features), so float32 or more is needed; the interval reaches beyond one (`level_reach`); and coefficients are
derived here, not tabulated.
"""

from __future__ import annotations

import functools
import math

import numpy as np

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.pooling.newton_schulz import checked_iterations
from convsmith.pooling.product_form import Step

#: 15/8, -10/8, 3/8: the quintic with a triple fixed point at one, where the interval is narrower than Remez resolves
TAYLOR = Step((15 / 8, -10 / 8, 3 / 8))


def best_quintic(low: float, high: float) -> tuple[Step, float]:
    """Return the odd quintic closest to 1 on [low, high] and its error E, by Remez exchange.

    The leading coefficient's sign and the order of the extrema are those of the unique best approximation. Raises
    `InvalidArgument` unless 0 < low < high.
    """
    if not 0.0 < low < high:
        raise InvalidArgument("an interval 0 < low < high is needed", argument="best_quintic", given=(low, high))
    if low / high > 0.995:
        middle = 2.0 / (low + high)
        scaled = Step(tuple(c * middle ** (2 * i + 1) for i, c in enumerate(TAYLOR.coefficients)))
        return scaled, max(abs(1 - low * scaled(low * low)), abs(1 - high * scaled(high * high)))
    points = [low, low + 0.25 * (high - low), low + 0.75 * (high - low), high]
    error = math.inf
    for _ in range(100):
        rows = [[x, x**3, x**5, (-1.0) ** i] for i, x in enumerate(points)]
        a, b, c, level = np.linalg.solve(rows, np.ones(4)).tolist()
        # extrema inside: roots of a + 3 b x^2 + 5 c x^4
        spread = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        inner = sorted(math.sqrt(max((-3 * b + sign * spread) / (10 * c), 0.0)) for sign in (-1, 1))
        points = [low, inner[0], inner[1], high]
        if abs(abs(level) - error) <= 1e-15 * abs(level):
            break
        error = abs(level)
    return Step((a, b, c)), abs(level)


def polar_express_steps(iterations: int, smallest: float = 1e-3, largest: float | None = None) -> tuple[Step, ...]:
    """Return ``iterations`` optimal quintic steps for singular values in [smallest, largest].

    ``smallest`` is a singular value: eigenvalues of the normalised matrix down to ``smallest**2`` get the error that
    `schedule` gives; smaller ones, zero included, are treated as a filter would. ``largest`` None takes
    `level_reach`, which keeps rounding small where the singular value is one; 1.0 is the paper's interval.
    """
    return tuple(step for step, _ in schedule(iterations, smallest, largest))


@functools.lru_cache(maxsize=64)
def level_reach(smallest: float) -> float:
    """Return the interval's end at which the first step is level at a singular value of one.

    A minimax polynomial is steepest at the ends of its interval, and its steps multiply: five steps on [1e-3, 1] have
    slope 75,000 at one, where a covariance of rank one (a map with two positions) has its only eigenvalue after trace
    normalisation. With one at the first step's inner extremum its slope is zero, and that of the root x h(x) at most
    113 anywhere in [0, 1] after any number of steps; the error after as many steps is 1.4 (five) to 5 (seven) times
    larger.
    """
    end = 1.0
    for _ in range(50):
        a, b, c = best_quintic(smallest, end)[0].coefficients
        extremum = math.sqrt((-3 * b + math.sqrt(max(9 * b * b - 20 * a * c, 0.0))) / (10 * c))
        end, before = end / extremum, end
        if abs(end - before) <= 1e-15 * end:
            break
    return end


@functools.lru_cache(maxsize=64)
def schedule(iterations: int, smallest: float = 1e-3, largest: float | None = None) -> tuple[tuple[Step, float], ...]:
    """Return the steps with max |1 - x Z| on [smallest, largest] after each: the root's error, before any matrix."""
    checked_iterations(iterations)
    arguments.number("smallest", smallest, above=0, below=1)
    if largest is not None:
        arguments.number("largest", largest, least=1)
    low, high = smallest, level_reach(smallest) if largest is None else largest
    found = []
    for _ in range(iterations):
        step, error = best_quintic(low, high)
        found.append((step, error))
        low, high = 1.0 - max(error, 1e-12), 1.0 + max(error, 1e-12)
    return tuple(found)
