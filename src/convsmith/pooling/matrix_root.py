"""Square roots, powers and the logarithm of symmetric positive semi-definite matrices, in batches.

================  ===========================================  ========================  =============
method            what it computes                             zero eigenvalue goes to   backward
================  ===========================================  ========================  =============
newton-schulz     N steps of the published iteration           0                         frechet, unrolled, lyapunov
polar-express     N minimax quintic steps: the true root       0                         frechet, unrolled, lyapunov
taylor            Taylor polynomial, degree 2 N                floor C(4N, 2N)/4^(2N)    unrolled, lyapunov
pade              Pade [N, N] quotient                         floor 1 / (2 N + 1)       unrolled, lyapunov
eigh              the exact root                               0                         exact
================  ===========================================  ========================  =============
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convsmith.errors import InvalidArgument
from convsmith.pooling import product_form
from convsmith.pooling.inputs import float32_island, one_of, positive, square
from convsmith.pooling.lyapunov import lyapunov_iterative
from convsmith.pooling.newton_schulz import (
    coupled,
    newton_schulz_steps,
    normalizer,
    warn_if_diverged,
    warn_if_unsafe,
)
from convsmith.pooling.pade import pade_root, taylor_root
from convsmith.pooling.product_form import Step
from convsmith.pooling.remez import polar_express_steps
from convsmith.pooling.spectral import Logarithm, Power, spectral_map

BACKWARDS = {
    "newton-schulz": ("frechet", "unrolled", "lyapunov"),
    "polar-express": ("frechet", "unrolled", "lyapunov"),
    "taylor": ("unrolled", "lyapunov"),
    "pade": ("unrolled", "lyapunov"),
    "eigh": ("exact",),
}


@float32_island
def matrix_sqrt(
    a: Tensor,
    *,
    method: str = "newton-schulz",
    iterations: int = 5,
    normalization: str | None = "trace",
    compensate: bool = True,
    backward: str | None = None,
) -> Tensor:
    """Return the square root of symmetric positive semi-definite matrices, ``[B, d, d]`` (or ``[d, d]``) -> the same.

    Args:
        a: the matrices; float16 and bfloat16 are computed in float32.
        method: see the table of this module.
        iterations: N, at least 1; the exact method needs none.
        normalization: divide by the ``"trace"`` or ``"frobenius"`` norm first (the iterations converge on eigenvalues
            in (0, 1]); None leaves the matrix, and warns when the iteration diverges.
        compensate: multiply the result by the root of what was divided out, so that ``sqrt(c a) = sqrt(c) sqrt(a)``.
        backward: ``"frechet"`` runs the derivative of the same polynomial without a stored chain, ``"unrolled"`` leaves
            the published recurrence to autograd, ``"lyapunov"`` solves B X + X B = G for the returned root B as if it
            were exact. None: the first of the table's entry.

    A zero matrix gives zero with a zero gradient. Gradients are exact for cotangents that are not symmetric (the
    iterations are polynomials of any square matrix; ``"eigh"`` takes the symmetric part of ``a``). All are
    double-differentiable. Raises `InvalidArgument` on a wrong shape or type, a value that is not finite, an unknown
    name.

    Paper: Li et al. (CVPR 2018), sections 3.2 and 3.3.
    """
    one_of("method", method, tuple(BACKWARDS))
    backward = backward or BACKWARDS[method][0]
    one_of(f"backward of method {method!r}", backward, BACKWARDS[method])
    positive("iterations", iterations)
    a = square(a, "matrix_sqrt")
    batch = a.shape[:-2]
    a = a.reshape(-1, *a.shape[-2:])
    size = normalizer(a, normalization)
    if size is None:
        root = _root(a, method, iterations, backward)
        if method in ("newton-schulz", "polar-express"):
            warn_if_diverged(a, root, overshoot=1.0 if method == "newton-schulz" else 2.0)
        return root.reshape(*batch, *root.shape[-2:])
    alive = size > 0
    safe = torch.where(alive, size, 1.0)
    normal = torch.where(alive[:, None, None], a / safe[:, None, None], 0.0)
    root = _root(normal, method, iterations, backward)
    if compensate:
        root = root * torch.where(alive, safe.sqrt(), 0.0)[:, None, None]
    return root.reshape(*batch, *root.shape[-2:])


@float32_island
def matrix_power(a: Tensor, exponent: float, *, method: str = "eigh") -> Tensor:
    """Return ``U diag(lambda^exponent) U^T`` for symmetric positive semi-definite ``a``, ``[B, d, d]`` -> the same.

    Null eigenvalues stay null for every exponent but 0, where the result is the projector onto the range. ``method`` is
    ``"eigh"`` for any exponent; ``"newton-schulz"`` and ``"polar-express"`` (seven steps each) take 0.5 only.

    Paper: Li et al. (ICCV 2017), equation (4) with f(lambda) = lambda^alpha.
    """
    if not isinstance(exponent, (int, float)) or isinstance(exponent, bool) or exponent != exponent:
        raise InvalidArgument("the exponent is a number", argument="matrix_power", given=repr(exponent))
    one_of("method", method, ("eigh", "newton-schulz", "polar-express"))
    if method != "eigh":
        if exponent != 0.5:
            raise InvalidArgument(
                "the iterations compute the square root only", argument=f"exponent {exponent}", hint='method="eigh"'
            )
        return matrix_sqrt(a, method=method, iterations=7)
    return spectral_map(square(a, "matrix_power"), Power(float(exponent)))


@float32_island
def matrix_log(a: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """Return ``log(A + ridge I)`` for symmetric positive semi-definite ``a``, ``[B, d, d]`` -> the same.

    Paper: Ionescu et al., "Matrix Backpropagation for Deep Networks with Structured Layers" (ICCV 2015), section 6.
    """
    if not ridge > 0:
        raise InvalidArgument(
            "the logarithm of a singular matrix needs a positive ridge", argument="ridge", given=ridge
        )
    return spectral_map(square(a, "matrix_log"), Logarithm(float(ridge)))


def _root(a: Tensor, method: str, iterations: int, backward: str) -> Tensor:
    if method == "eigh":
        return spectral_map(a, Power(0.5))
    if method in ("newton-schulz", "polar-express"):
        warn_if_unsafe(iterations, a.dtype)
        steps = newton_schulz_steps(iterations) if method == "newton-schulz" else polar_express_steps(iterations)
        if backward == "unrolled":
            return coupled(a, iterations)[0] if method == "newton-schulz" else product_form.run(a, steps, True)[0]
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return product_form.run(a, steps, True)[0]
        return _PolynomialRoot.apply(a, steps) if backward == "frechet" else _WithLyapunov.apply(a, method, iterations)
    if backward == "lyapunov":
        return _WithLyapunov.apply(a, method, iterations)
    return _forward_only(a, method, iterations)


def _forward_only(a: Tensor, method: str, iterations: int) -> Tensor:
    if method == "taylor":
        return taylor_root(a, 2 * iterations)
    if method == "pade":
        return pade_root(a, iterations)
    steps = newton_schulz_steps(iterations) if method == "newton-schulz" else polar_express_steps(iterations)
    return product_form.run(a, steps, True)[0]


class _PolynomialRoot(torch.autograd.Function):
    """A -> A prod u_k; the gradient of <G, .> is the Frechet derivative at A^T in direction G. Only A is kept."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, steps: tuple[Step, ...]) -> Tensor:
        return product_form.run(a, steps, root=True)[0]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        a, ctx.steps = inputs
        ctx.save_for_backward(a)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        (a,) = ctx.saved_tensors
        with torch.autocast(a.device.type, enabled=False):
            return product_form.frechet(a.mT, g, ctx.steps, root=True), None


class _WithLyapunov(torch.autograd.Function):
    """Any approximate root B, whose gradient solves B X + X B = G."""

    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, method: str, iterations: int) -> Tensor:
        return _forward_only(a, method, iterations)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG004
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (root,) = ctx.saved_tensors
        with torch.autocast(root.device.type, enabled=False):
            return lyapunov_iterative(root.mT, g), None, None
