"""Any power of a covariance or second moment straight from the features, exact, on the cheaper side.

With X (d x M, scaled by 1/sqrt(M)) and the eigenvalues and vectors (l, V) of X^T X,
``(X X^T)^alpha = X V diag(l^(alpha - 1)) V^T X^T`` over the non-zero l: an M x M instead of a d x d eigenproblem.
Both sides are refined to what the features determine (`convsmith.pooling.singular`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.pooling.covariance import centred
from convsmith.pooling.inputs import columns, float32_island, power_of_two, refuse_overflow
from convsmith.pooling.isqrt import SIDES
from convsmith.pooling.singular import singular
from convsmith.pooling.spectral import Power, refuse_export, spectral_map, spectral_pull_back


@torch.compiler.disable  # as spectral_map: compiled code breaks its graph here
@float32_island
def power_covariance(x: Tensor, *, exponent: float = 0.5, center: bool = True, side: str = "auto") -> Tensor:
    """Return ``Sigma^exponent`` of the covariance (or, with ``center=False``, the second moment) of features.

    Shapes: ``[B, C, H, W]`` or ``[B, C, M]`` -> ``[B, C, C]``. ``exponent`` is positive; null eigenvalues stay null.
    ``side`` as in `convsmith.pooling.isqrt_covariance`. A constant map gives zeros and a zero gradient. Raises
    `InvalidArgument` as `convsmith.pooling.covariance` does, and for an exponent that is not positive.

    Paper: Li et al. (ICCV 2017), section 3.2, with the gradient of Daleckii and Krein.
    Differs from the paper: no division by eigenvalue gaps; the Gram side; singular values in place of their squares.

    Examples:
        >>> power_covariance(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 8])
    """
    arguments.one_of("side", side, SIDES)
    arguments.number("exponent", exponent, above=0)
    refuse_export()
    x = columns(x, "power_covariance")
    d, m = x.shape[1], x.shape[2]
    size = power_of_two(x)
    x = (centred(x / size) if center else x / size) * (1.0 / math.sqrt(m))
    out: Tensor = _CovariancePower.apply(x, float(exponent), side == "positions" or (side == "auto" and m < d))[0]
    return refuse_overflow(out * size ** (2.0 * exponent), x, "power_covariance")


class _CovariancePower(torch.autograd.Function):
    """X -> ((X X^T)^e, squares, vectors, images); only the first carries a gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, exponent: float, positions: bool) -> tuple[Tensor, ...]:
        found = singular(x if positions else x.mT)
        if positions:
            out = found.images * Power(exponent - 1.0).value(found.squares)[..., None, :] @ found.images.mT
        else:
            out = found.vectors * Power(exponent).value(found.squares)[..., None, :] @ found.vectors.mT
        return out, *found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.exponent, ctx.positions = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *output[1:])
        ctx.save_for_forward(x, *output[1:])

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, squares, vectors, images = ctx.saved_tensors
        # X X^T moves by dX X^T + X dX^T, seen from the eigenvectors on the side that was taken
        if ctx.positions:
            function = Power(ctx.exponent - 1.0)
            move = vectors.mT @ (dx.mT @ x + x.mT @ dx) @ vectors
            slopes = function.slope(squares[..., :, None], squares[..., None, :])
            half = dx @ (vectors * function.value(squares)[..., None, :]) @ images.mT
            out = half + half.mT + images @ (slopes * move) @ images.mT
        else:
            slopes = Power(ctx.exponent).slope(squares[..., :, None], squares[..., None, :])
            out = vectors @ (slopes * (vectors.mT @ (dx @ x.mT + x @ dx.mT) @ vectors)) @ vectors.mT
        return out, None, None, None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        g = grads[0]
        if g is None:
            return None, None, None
        x, squares, vectors, images = ctx.saved_tensors
        if torch.is_grad_enabled():
            return _gradient_again(x, g, ctx.exponent, ctx.positions), None, None
        return _gradient(squares, vectors, images, g + g.mT, ctx.exponent, ctx.positions), None, None


def _gradient(squares: Tensor, v: Tensor, w: Tensor, g: Tensor, exponent: float, positions: bool) -> Tensor:
    """Gradient with respect to X for twice the symmetric part of the cotangent, from X = W V^T or V W^T."""
    function = Power(exponent - 1.0 if positions else exponent)
    slopes = function.slope(squares[..., :, None], squares[..., None, :])
    if not positions:
        return v @ (slopes * (v.mT @ g @ v)) @ w.mT
    through = g @ w
    return (through * function.value(squares)[..., None, :] + w @ (slopes * (w.mT @ through))) @ v.mT


def _gradient_again(x: Tensor, g: Tensor, exponent: float, positions: bool) -> Tensor:
    """Return the same in differentiable operations, for second derivatives."""
    if not positions:
        return 2.0 * spectral_pull_back(x @ x.mT, g, Power(exponent)) @ x
    gram, function = x.mT @ x, Power(exponent - 1.0)
    through = (g + g.mT) @ x
    return through @ spectral_map(gram, function) + x @ spectral_pull_back(gram, x.mT @ through, function)
