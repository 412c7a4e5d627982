"""Second moments of features over their positions, and the vector of a symmetric matrix."""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.pooling.inputs import columns, float32_island, is_plain, power_of_two, refuse_overflow, square


@float32_island
def covariance(x: Tensor, *, center: bool = True, weights: Tensor | None = None) -> Tensor:
    """Return the covariance of C channels over M positions, ``[B, C, H, W]`` or ``[B, C, M]`` -> ``[B, C, C]``.

    ``Sigma = 1/M sum_m (x_m - mu)(x_m - mu)^T``, the biased estimate; ``center=False`` gives ``1/M sum_m x_m x_m^T``.
    ``weights`` [B, M] (non-negative, for masks of tokens or soft attention) replaces 1/M by weights of sum one in both
    sums. Units: those of x squared. One position gives zeros. Raises `InvalidArgument` on a wrong rank or type, no
    channel or position, values that are not finite, or weights that do not fit.

    Paper: Li et al., "Is Second-order Information Helpful for Large-scale Visual Recognition?" (ICCV 2017), section 3.
    Differs from the paper: the mean is subtracted instead of multiplying by the M x M centring matrix.

    Examples:
        >>> covariance(torch.tensor([[[1.0, 3.0], [0.0, 2.0]]])).round(decimals=4)
        tensor([[[1., 1.],
                 [1., 1.]]])
    """
    arguments.one_of("center", center, (True, False))
    x = columns(x, "covariance")
    if weights is not None:
        return _weighted(x, weights, center)
    y = (centred(x) if center else x) * (1.0 / math.sqrt(x.shape[2]))
    return refuse_overflow(y @ y.mT, x, "covariance")


def centred(x: Tensor) -> Tensor:
    """Subtract the mean over positions, [B, C, M]; a sample that is constant up to rounding becomes exactly zero."""
    size = power_of_two(x)  # squares of features near 1e30 would make an infinite energy of them
    scaled = x / size
    mean = scaled.mean(2, keepdim=True)
    scaled = scaled - mean
    return torch.where(is_signal(scaled.square().sum((1, 2), keepdim=True), mean, x.shape[2]), scaled, 0.0) * size


def is_signal(energy: Tensor, mean: Tensor, positions: int) -> Tensor:
    """Say per sample whether the centred energy [B, 1, 1] is more than the rounding of subtracting ``mean`` [B, C, 1].

    Subtracting the mean of M equal values leaves some ulp of that mean; a normalisation would blow it up to full size.
    """
    floor = (8 * torch.finfo(mean.dtype).eps) ** 2 * positions * mean.square().sum((1, 2), keepdim=True)
    return energy > floor + torch.finfo(mean.dtype).tiny


def _weighted(x: Tensor, weights: Tensor, center: bool) -> Tensor:
    arguments.tensor("weights", weights, floating=False, what="numbers [B, M]")
    if weights.shape != (x.shape[0], x.shape[2]):
        given = f"weights {tuple(weights.shape)} for features {tuple(x.shape)}"
        raise InvalidArgument("weights are [B, M], one per position", argument="covariance", given=given)
    if is_plain(weights) and not bool(((weights >= 0) & (weights < torch.inf)).all()):
        given = f"{float(weights.min()):.3g}"
        raise InvalidArgument("weights are finite numbers of 0 or more", argument="covariance", given=given)
    share = weights.to(x.dtype)
    total = share.sum(1, keepdim=True)
    share = (share / torch.where(total > 0, total, 1.0))[:, None, :]
    if center:
        x = x - (x * share).sum(2, keepdim=True)
    return (x * share) @ x.mT


@functools.lru_cache(maxsize=32)
def _upper(d: int, device: torch.device) -> Tensor:
    row, column = torch.triu_indices(d, d, device=device)
    return row * d + column


def _upper_index(d: int, device: torch.device) -> Tensor:
    if torch.compiler.is_compiling():
        row, column = torch.triu_indices(d, d, device=device)
        return row * d + column
    with torch.inference_mode(False):
        index = _upper(d, device)
    if type(index) is not Tensor:
        _upper.cache_clear()  # made under a fake-tensor mode: a later real call must not find it
    return index


def triu_size(d: int) -> int:
    """Length of the upper triangle with its diagonal: d (d + 1) / 2.

    Examples:
        >>> triu_size(256)
        32896
    """
    return d * (d + 1) // 2


def triu_vector(a: Tensor, *, isometric: bool = False) -> Tensor:
    """Return the upper triangle with the diagonal, row by row, ``[B, d, d]`` -> ``[B, d (d + 1) / 2]``.

    ``isometric=True`` multiplies the off-diagonal entries by sqrt(2), so that the vector's dot product is the
    matrices' Frobenius product. The published networks use False.

    Examples:
        >>> triu_vector(torch.tensor([[[1.0, 2.0], [2.0, 3.0]]]))
        tensor([[1., 2., 3.]])
    """
    arguments.one_of("isometric", isometric, (True, False))
    a = square(a, "triu_vector")
    d = a.shape[-1]
    index = _upper_index(d, a.device)
    v = a.flatten(-2).index_select(-1, index)
    return v * _isometry(d, v) if isometric else v


def matrix_from_triu(v: Tensor, *, isometric: bool = False) -> Tensor:
    """Return the symmetric matrix of a `triu_vector`, ``[B, d (d + 1) / 2]`` -> ``[B, d, d]``.

    Examples:
        >>> matrix_from_triu(torch.tensor([[1.0, 2.0, 3.0]]))
        tensor([[[1., 2.],
                 [2., 3.]]])
    """
    arguments.one_of("isometric", isometric, (True, False))
    n = arguments.tensor("v", v, rank=(1, 2, 3), floating=False, what="vectors [B, d (d + 1) / 2]").shape[-1]
    d = (math.isqrt(8 * n + 1) - 1) // 2
    if d == 0 or triu_size(d) != n:
        rule = "the length must be d (d + 1) / 2"
        raise InvalidArgument(rule, argument="matrix_from_triu", given=n, hint=f"near: {triu_size(max(d, 1))}")
    if isometric:
        v = v / _isometry(d, v)
    row, column = torch.triu_indices(d, d, device=v.device)
    where = torch.empty(d, d, dtype=torch.long, device=v.device)
    order = torch.arange(n, device=v.device)
    where[row, column] = order
    where[column, row] = order
    return v.index_select(-1, where.flatten()).unflatten(-1, (d, d))


def _isometry(d: int, like: Tensor) -> Tensor:
    row, column = torch.triu_indices(d, d, device=like.device)
    return 1.0 + (row != column).to(like.dtype) * (math.sqrt(2.0) - 1.0)
