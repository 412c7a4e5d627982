"""The Newton-Schulz iteration for the matrix square root: published, and the same iterates in fewer products.

Paper: Li et al., "Towards Faster Training of Global Covariance Pooling Networks by Iterative Matrix Square Root
Normalization" (CVPR 2018), equations (4) to (6). From Y_0 = A, Z_0 = I::

    T = (3 I - Z Y) / 2,    Y <- Y T,    Z <- T Z,        Y -> A^(1/2),  Z -> A^(-1/2)   for |A - I| < 1

On an eigenvalue p the product ZY becomes p (3 - p)^2 / 4. Small eigenvalues a grow by 3/2 a step in sqrt(a), so N
steps act like a filter that shrinks eigenvalues below (2/3)^(2N): with N = 5 the result is 20 to 50 % away from the
exact root on the spectra of real features, on purpose of the paper.
"""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.pooling.inputs import has_values
from convsmith.pooling.product_form import Step

#: (3 - p) / 2, one Newton-Schulz step
SINGLE = Step((3 / 2, -1 / 2))
#: u(p) of two steps at once: (3 - p)/2 times (3 - p (3 - p)^2 / 4)/2
DOUBLE = Step((9 / 4, -39 / 16, 27 / 16, -9 / 16, 1 / 16))

MOST_ITERATIONS = 1000
#: Steps after which rounding in the null space, which grows by 9/4 a step, reaches the size of the matrix.
SAFE_STEPS = {torch.float16: 8, torch.bfloat16: 7, torch.float32: 20, torch.float64: 40}


def checked_iterations(iterations: int) -> int:
    """Return a number of steps that ends, of any scheme, or raise `InvalidArgument`."""
    return arguments.integer("iterations", iterations, least=1, most=MOST_ITERATIONS)


def newton_schulz_steps(iterations: int) -> tuple[Step, ...]:
    """Return the factors of ``iterations`` Newton-Schulz steps: pairs first, a single one last if the number is odd."""
    checked_iterations(iterations)
    return (DOUBLE,) * (iterations // 2) + (SINGLE,) * (iterations % 2)


def warn_if_unsafe(iterations: int, dtype: torch.dtype) -> None:
    """Warn when ``iterations`` exceeds what ``dtype`` carries on a rank-deficient matrix."""
    safe = SAFE_STEPS.get(dtype)
    if safe is not None and iterations > safe and not torch.compiler.is_compiling():
        warnings.warn(
            f"{iterations} Newton-Schulz iterations in {str(dtype).removeprefix('torch.')} are more than the {safe}"
            " that are safe: on a rank-deficient matrix rounding grows by 9/4 a step and ends in NaN. Use fewer"
            ' iterations, float64, or method="eigh".',
            RuntimeWarning,
            stacklevel=3,
        )


def warn_if_diverged(a: Tensor, y: Tensor, overshoot: float = 1.0) -> None:
    """Warn when the iteration left its region of convergence on a matrix that was not pre-normalised.

    Inside the region ``Y <= overshoot A^(1/2)`` (one for Newton-Schulz, two for the minimax steps), so
    ``|Y|_F^2 <= overshoot^2 tr A`` and ``tr Y >= 0``. Costs one synchronisation.
    """
    if torch.compiler.is_compiling() or not has_values(a):
        return
    with torch.no_grad():
        energy = y.square().sum((-2, -1))
        trace = a.diagonal(dim1=-2, dim2=-1).sum(-1)
        good = (energy <= 1.01 * overshoot**2 * trace.clamp(min=0)) & (y.diagonal(dim1=-2, dim2=-1).sum(-1) >= 0)
        bad = int((~good).sum())
    if bad:
        warnings.warn(
            f"the iteration diverged on {bad} of {good.numel()} matrices: without pre-normalisation it needs every"
            f" eigenvalue below {3 if overshoot == 1 else 1}, and the largest trace here is {float(trace.max()):.3g}."
            ' Use normalization="trace" (or "frobenius").',
            RuntimeWarning,
            stacklevel=4,
        )


def normalizer(a: Tensor, normalization: str | None) -> Tensor:
    """Return the pre-normalisation factor per matrix: trace, Frobenius norm or one; norms are zero of a zero matrix."""
    if normalization == "trace":
        return a.diagonal(dim1=-2, dim2=-1).sum(-1)
    if normalization == "frobenius":
        largest = a.detach().abs().amax((-2, -1))
        alive = largest > 0
        scale = torch.where(alive, largest, 1.0)[..., None, None]
        squares = (a / scale).square().sum((-2, -1))  # the squares themselves may leave the type's range
        return torch.where(alive, squares, 1.0).sqrt() * scale[..., 0, 0] * alive
    return a.new_ones(a.shape[:-2])
