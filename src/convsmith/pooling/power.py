"""Any power, and the logarithm, of a covariance or second moment straight from the features, exact.

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
from convsmith.pooling.singular import Singular, singular
from convsmith.pooling.spectral import (
    Logarithm,
    Power,
    SpectralFunction,
    refuse_export,
    spectral_map,
    spectral_pull_back,
)


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
    arguments.one_of("center", center, (True, False))
    arguments.number("exponent", exponent, above=0)
    refuse_export()
    x = columns(x, "power_covariance")
    d, m = x.shape[1], x.shape[2]
    size = power_of_two(x)
    x = (centred(x / size) if center else x / size) * (1.0 / math.sqrt(m))
    positions = side == "positions" or (side == "auto" and m < d)
    out: Tensor = _GramFunction.apply(x, Power(exponent - 1.0 if positions else float(exponent)), positions)[0]
    return refuse_overflow(out * size ** (2.0 * exponent), x, "power_covariance")


@torch.compiler.disable  # as spectral_map
def gram_log(y: Tensor) -> Tensor:
    """Return log(Y Y^T) for Y [B, d, n] of rank d, [B, d, d], by the singular values of Y.

    The eigenvalues of Y Y^T are squares: in double precision those below 1e-16 of the largest are lost in it. Those of
    the factor are not: features at an offset of 1e3 with few positions have some at 1e-17.
    """
    refuse_export()
    out: Tensor = _GramFunction.apply(y, Logarithm(0.0), False)[0]
    return out


class _GramFunction(torch.autograd.Function):
    """X, f -> (f(X X^T), squares, vectors, images); only the first carries a gradient.

    ``positions`` works on the eigenvectors of X^T X, with f(l) / l in place of f.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, function: SpectralFunction, positions: bool) -> tuple[Tensor, ...]:
        if isinstance(function, Logarithm):
            vectors, s, _ = torch.linalg.svd(torch.linalg.qr(x.mT, mode="r")[1].mT)
            found = Singular(s.square(), vectors, x.mT @ vectors)
        else:
            found = singular(x if positions else x.mT)
        sides = found.images if positions else found.vectors
        return sides * function.value(found.squares)[..., None, :] @ sides.mT, *found

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.function, ctx.positions = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *output[1:])
        ctx.save_for_forward(x, *output[1:])

    @staticmethod
    def jvp(ctx: Any, dx: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
        x, squares, vectors, images = ctx.saved_tensors
        slopes = ctx.function.slope(squares[..., :, None], squares[..., None, :])
        # X X^T moves by dX X^T + X dX^T, seen from the eigenvectors on the side that was taken
        if ctx.positions:
            move = vectors.mT @ (dx.mT @ x + x.mT @ dx) @ vectors
            half = dx @ (vectors * ctx.function.value(squares)[..., None, :]) @ images.mT
            out = half + half.mT + images @ (slopes * move) @ images.mT
        else:
            half = (vectors.mT @ dx) @ (vectors.mT @ x).mT
            out = vectors @ (slopes * (half + half.mT)) @ vectors.mT
        return out, None, None, None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None]:
        g = grads[0]
        if g is None:
            return None, None, None
        x, squares, vectors, images = ctx.saved_tensors
        again = _gradient_again(x, g, ctx.function, ctx.positions) if torch.is_grad_enabled() else None
        if again is None or isinstance(ctx.function, Logarithm):
            exact = _gradient(squares, vectors, images, g + g.mT, ctx.function, ctx.positions)
            # a logarithm's own derivative comes from the product's eigenvalues, where those are there
            again = exact if again is None else torch.where(again.isfinite(), again + (exact - again).detach(), exact)
        return again, None, None


def _gradient(squares: Tensor, v: Tensor, w: Tensor, g: Tensor, function: SpectralFunction, positions: bool) -> Tensor:
    """Gradient with respect to X for twice the symmetric part of the cotangent, from X = W V^T or V W^T."""
    slopes = function.slope(squares[..., :, None], squares[..., None, :])
    if not positions:
        return v @ (slopes * (v.mT @ g @ v)) @ w.mT
    through = g @ w
    return (through * function.value(squares)[..., None, :] + w @ (slopes * (w.mT @ through))) @ v.mT


def _gradient_again(x: Tensor, g: Tensor, function: SpectralFunction, positions: bool) -> Tensor:
    """Return the same in differentiable operations, for second derivatives."""
    if not positions:
        safe = Logarithm(torch.finfo(x.dtype).tiny) if isinstance(function, Logarithm) else function
        return 2.0 * spectral_pull_back(x @ x.mT, g, safe) @ x
    gram, through = x.mT @ x, (g + g.mT) @ x
    return through @ spectral_map(gram, function) + x @ spectral_pull_back(gram, x.mT @ through, function)
