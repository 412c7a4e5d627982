"""Square roots, powers and the logarithm of symmetric positive semi-definite matrices, in batches.

A matrix in single precision is known to a rounding of its largest eigenvalue, and its null space is not null: tiny
eigenvalues of either sign are there. So what depends on small eigenvalues (the exact root and power, the logarithm, the
minimax steps) is computed in double precision, and a matrix that has a larger negative eigenvalue is refused.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.pooling import product_form
from convsmith.pooling.inputs import float32_island, float64_island, is_plain, square
from convsmith.pooling.newton_schulz import (
    checked_iterations,
    newton_schulz_steps,
    normalizer,
    warn_if_diverged,
    warn_if_unsafe,
)
from convsmith.pooling.product_form import Step, recomputed
from convsmith.pooling.remez import polar_express_steps
from convsmith.pooling.spectral import Logarithm, Power, spectral_map

METHODS = ("newton-schulz", "polar-express", "eigh")
#: minimax steps see the matrix lifted by so many roundings of its trace
LIFT = 8.0


def matrix_sqrt(
    a: Tensor,
    *,
    method: str = "newton-schulz",
    iterations: int = 5,
    normalization: str | None = "trace",
    compensate: bool = True,
) -> Tensor:
    """Return the square root of symmetric positive semi-definite matrices, ``[B, d, d]`` (or ``[d, d]``) -> the same.

    Args:
        a: the matrices; float16 and bfloat16 are computed in float32.
        method: ``"newton-schulz"`` runs the published steps, ``"polar-express"`` minimax quintics that give the true
            root, ``"eigh"`` is exact. All map a null eigenvalue to zero.
        iterations: N, at least 1; the exact method needs none.
        normalization: divide by the ``"trace"`` or ``"frobenius"`` norm first (the iterations converge on eigenvalues
            in (0, 1]); None leaves the matrix, and warns when the iteration diverges.
        compensate: multiply the result by the root of what was divided out, so that ``sqrt(c a) = sqrt(c) sqrt(a)``.

    A zero matrix gives zero with a zero gradient. Newton-Schulz is the published polynomial of any square matrix, its
    gradient exact for cotangents that are not symmetric; the others take the symmetric part of ``a``. All are
    double-differentiable. Raises `InvalidArgument` on a wrong shape or type, a value that is not finite, an unknown
    name, and (in eager mode on a CPU) a matrix with an eigenvalue below zero by more than rounding.

    Paper: Li et al. (CVPR 2018), sections 3.2 and 3.3.

    Examples:
        >>> matrix_sqrt(4 * torch.eye(2), method="eigh").diagonal().round(decimals=4)
        tensor([2., 2.])
    """
    arguments.one_of("method", method, METHODS)
    checked_iterations(iterations)
    arguments.one_of("normalization", normalization, ("trace", "frobenius", None))
    arguments.one_of("compensate", compensate, (True, False))
    a = refuse_indefinite(square(a, "matrix_sqrt"), "matrix_sqrt", polynomial=method == "newton-schulz")
    settings = (method, iterations, normalization, compensate)
    if method == "newton-schulz":
        return _single(a, *settings, 0.0)
    return _double(a, *settings, LIFT * torch.finfo(a.dtype).eps if method == "polar-express" else 0.0)


def _scaled_root(
    a: Tensor, method: str, iterations: int, normalization: str | None, compensate: bool, lift: float
) -> Tensor:
    batch = a.shape[:-2]
    a = a.reshape(-1, *a.shape[-2:])
    size = normalizer(a, normalization)
    alive = size > 0
    safe = torch.where(alive, size, 1.0)
    normal = torch.where(alive[:, None, None], a / safe[:, None, None], 0.0)
    root = _root(normal, method, iterations, lift)
    if normalization is None and method != "eigh":
        warn_if_diverged(a, root, overshoot=1.0 if method == "newton-schulz" else 2.0)
    if compensate:
        root = root * torch.where(alive, safe.sqrt(), 0.0)[:, None, None]
    return root.reshape(*batch, *root.shape[-2:])


_single, _double = float32_island(_scaled_root), float64_island(_scaled_root)


def refuse_indefinite(a: Tensor, asked: str, *, polynomial: bool = False) -> Tensor:
    """Return the symmetric part of ``a``, or raise `InvalidArgument` where it has an eigenvalue clearly below zero.

    One Cholesky factorisation of the matrix lifted by its rounding; only on a CPU in eager mode, where looking is free.
    ``polynomial``: ``a`` stays as it is, and a matrix that is not symmetric passes.
    """
    a = a if polynomial else (a + a.mT) * 0.5
    # fake tensors take the same way up to the look, so that what is counted without values is what runs
    fake = type(a).__name__ == "FakeTensor" and a.device.type == "cpu" and not torch.compiler.is_compiling()
    if not (is_plain(a) or fake) or a.numel() == 0:
        return a
    with torch.no_grad():
        wide = a.detach().double()
        trace = wide.diagonal(dim1=-2, dim2=-1).sum(-1)
        size = wide.abs().amax((-2, -1)).clamp(min=torch.finfo(torch.float64).tiny)
        # also of a matrix in double precision, which often comes from features in single precision
        eps = max(torch.finfo(a.dtype).eps, torch.finfo(torch.float32).eps)
        lift = 16 * a.shape[-1] * eps * torch.maximum(size, trace.abs())
        symmetric = (wide - wide.mT).abs().amax((-2, -1)) <= lift
        eye = torch.eye(a.shape[-1], dtype=torch.float64)
        bad = symmetric & (torch.linalg.cholesky_ex(wide + lift[..., None, None] * eye).info != 0)
        if fake or not bool(bad.any()):
            return a
        least = float(torch.linalg.eigvalsh(wide[bad]).amin())
    given = f"{int(bad.sum())} of {bad.numel()} have eigenvalues below zero, down to {least:.3g}"
    hint = "covariances and Gram matrices are; add a ridge to others"
    raise InvalidArgument("the matrices must be positive semi-definite", argument=asked, given=given, hint=hint)


@float64_island
def matrix_power(a: Tensor, exponent: float, *, method: str = "eigh") -> Tensor:
    """Return ``U diag(lambda^exponent) U^T`` for symmetric positive semi-definite ``a``, ``[B, d, d]`` -> the same.

    Null eigenvalues stay null for every exponent but 0, where the result is the projector onto the range. ``method`` is
    ``"eigh"`` for any exponent; ``"newton-schulz"`` and ``"polar-express"`` (seven steps each) take 0.5 only.

    Paper: Li et al. (ICCV 2017), equation (4) with f(lambda) = lambda^alpha.

    Examples:
        >>> matrix_power(4 * torch.eye(2)[None], 0.5).diagonal(dim1=1, dim2=2).round(decimals=4)
        tensor([[2., 2.]])
    """
    arguments.number("exponent", exponent)
    arguments.one_of("method", method, METHODS)
    if method != "eigh":
        if exponent != 0.5:
            rule = "the iterations compute the square root only"
            raise InvalidArgument(rule, argument=f"exponent {exponent}", hint='method="eigh"')
        return matrix_sqrt(a, method=method, iterations=7)
    return spectral_map(refuse_indefinite(square(a, "matrix_power"), "matrix_power"), Power(float(exponent)))


@float64_island
def matrix_log(a: Tensor, *, ridge: float = 1e-3) -> Tensor:
    """Return ``log(A + ridge I)`` for symmetric positive semi-definite ``a``, ``[B, d, d]`` -> the same.

    Paper: Ionescu et al., "Matrix Backpropagation for Deep Networks with Structured Layers" (ICCV 2015), section 6.

    Examples:
        >>> matrix_log(torch.eye(2)[None]).shape
        torch.Size([1, 2, 2])
    """
    arguments.number("ridge", ridge, above=0)
    return spectral_map(refuse_indefinite(square(a, "matrix_log"), "matrix_log"), Logarithm(float(ridge)))


def _root(a: Tensor, method: str, iterations: int, lift: float) -> Tensor:
    if method == "eigh":
        return spectral_map(a, Power(0.5))
    if method == "newton-schulz":
        warn_if_unsafe(iterations, a.dtype)
        return recomputed(polynomial_root, a, newton_schulz_steps(iterations), lift)
    return recomputed(polynomial_root, a, polar_express_steps(iterations), lift)


def polynomial_root(a: Tensor, steps: tuple[Step, ...], lift: float) -> Tensor:
    """Return ``A prod u_k(A + lift I)``, [B, d, d].

    The steps multiply what is in the null space by ``prod u_k(0)^2``, up to 10^7: a negative eigenvalue of rounding's
    size would run away. Lifted, it cannot, and as A itself is the first factor zero still goes to zero; an eigenvalue l
    is off by lift / (2 l) of its root.
    """
    if lift == 0.0:
        return product_form.run(a, steps, True)[0]
    lifted = torch.add(a, torch.eye(a.shape[-1], dtype=a.dtype, device=a.device), alpha=lift)
    return a @ product_form.run(lifted, steps, False)[0]
