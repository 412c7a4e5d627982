"""Singular values of features by an eigenproblem on the smaller side, refined with matrix products.

The eigenvalues of X^T X are squares: an eigenproblem solved to ``eps |X|^2`` knows a singular value s only to
``eps (s_1 / s)^2``, and the root of a covariance and its gradient inherit that. A change of X by rounding moves them by
``eps s_1 / s`` only. One step of Jacobi rotations, all pairs at once, brings the second back: with the eigenvectors V,
the columns of ``W = X V`` have the singular values as their lengths, what is left of ``W^T W`` off the diagonal gives
the angle of each pair, and a Cayley transform makes the pairs' angles one orthogonal matrix. A singular value
decomposition of X itself is as exact and takes two to seven times as long.

Differs from Jacobi's method: one sweep of simultaneous rotations, which suffices because the eigenvectors are right to
rounding already; pairs of null vectors stay as they are.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from convsmith.pooling.product_form import symmetric_product


class Singular(NamedTuple):
    """``Y = sum_i w_i v_i^T`` with orthogonal v_i and w_i of length sqrt(squares_i), ascending up to rounding.

    ``squares`` [B, n], ``vectors`` [B, n, n] (columns v_i), ``images`` [B, r, n] (columns w_i); null directions have
    square and image exactly zero.
    """

    squares: Tensor
    vectors: Tensor
    images: Tensor


def singular(y: Tensor) -> Singular:
    """Return the decomposition of ``y`` [B, r, n] by an n x n eigenproblem.

    Directions whose square is below ``min(r, n) eps`` times the largest are null: in that range the eigenvectors are
    not known. Not meant for autograd.
    """
    _, v = torch.linalg.eigh(symmetric_product(y.mT, y))
    share = min(y.shape[-2:]) * torch.finfo(y.dtype).eps
    w = y @ v
    turn = _rotation(symmetric_product(w.mT, w), share)
    v, w = v @ turn, w @ turn
    squares = w.square().sum(-2)
    alive = squares > share * squares.amax(-1, keepdim=True)
    return Singular(torch.where(alive, squares, 0.0), v, torch.where(alive[..., None, :], w, 0.0))


def _rotation(h: Tensor, share: float) -> Tensor:
    """Return the orthogonal matrix whose pairs turn by the angles that would clear ``h`` [B, n, n] off its diagonal."""
    d = h.diagonal(dim1=-2, dim2=-1)
    null = d <= share * d.amax(-1, keepdim=True)
    gap = d[..., None, :] - d[..., :, None]
    eye = torch.eye(h.shape[-1], dtype=h.dtype, device=h.device)
    upper = torch.ones_like(eye).triu(1)
    sign = torch.where(gap == 0, upper - upper.mT, gap.sign())
    lever = gap + sign * torch.hypot(gap, 2.0 * h)
    free = (null[..., None, :] & null[..., :, None]) | (lever == 0)
    tangent = torch.where(free, 0.0, 2.0 * h / torch.where(free, 1.0, lever))
    # antisymmetric by construction: gap and sign change sign with the order of the pair, h does not
    half = tangent / (1.0 + torch.hypot(torch.ones_like(tangent), tangent))
    # (I - A)^-1 (I + A), A antisymmetric, written as (I + A^T A)^-1 (I + A)^2: batched LU on several CPU threads breaks
    # down in torch 2.14 with MKL from about 150 x 150 on, Cholesky does not
    step = eye + half
    return torch.cholesky_solve(step @ step, torch.linalg.cholesky(eye + symmetric_product(half.mT, half)))
