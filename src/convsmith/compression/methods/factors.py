"""The factors of one kernel: truncated singular values of a matrix, and of a kernel as a matrix or a tensor.

Each returns the weights of a chain of layers, one tensor a layer, in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Outputs:
    """Second moments of a layer's outputs without bias: ``mean`` [C'], ``covariance`` [C', C'] (float64)."""

    mean: Tensor
    covariance: Tensor


def energies(matrix: Tensor) -> Tensor:
    """Return the squared singular values [..., min(m, n)], largest first, from the smaller Gram matrix."""
    gram = matrix @ matrix.mT if matrix.shape[-2] <= matrix.shape[-1] else matrix.mT @ matrix
    return torch.linalg.eigvalsh(gram).flip(-1).clamp_min(0)


def svd(
    weight: Tensor, rank: int, groups: int, outputs: Outputs | None, memory: dict[str, Tensor] | None
) -> tuple[list[Tensor], Tensor]:
    """Return each group's rows in a basis of ``rank`` directions, and what to add to the bias."""
    matrix = weight.reshape(groups, weight.shape[0] // groups, -1)
    if outputs is None:
        left, right = split(matrix, rank, memory)
        return [right, left], weight.new_zeros(weight.shape[0])
    basis = _vectors(lambda: blocks(outputs.covariance, groups), memory)[:, :, :rank]
    mean = outputs.mean.reshape(groups, -1, 1)
    shift = mean - basis @ (basis.mT @ mean)
    return [basis.mT @ matrix, basis], shift.flatten()


def split(matrix: Tensor, rank: int, memory: dict[str, Tensor] | None) -> tuple[Tensor, Tensor]:
    """Return u sqrt(s) [..., m, rank] and sqrt(s) v [..., rank, n] of the largest singular values."""
    if matrix.shape[-2] > matrix.shape[-1]:
        right, left = split(matrix.mT, rank, memory)
        return left.mT, right.mT
    u = _vectors(lambda: matrix @ matrix.mT, memory)[..., :rank]
    rows = u.mT @ matrix  # s v
    root = torch.linalg.vector_norm(rows, dim=-1, keepdim=True).sqrt()
    return u * root.mT, rows / root.clamp_min(1e-150)


def _vectors(symmetric: Callable[[], Tensor], memory: dict[str, Tensor] | None) -> Tensor:
    """Return the eigenvectors, those of the largest eigenvalues first."""
    if memory is None:
        memory = {}
    if "vectors" not in memory:
        memory["vectors"] = torch.linalg.eigh(symmetric())[1].flip(-1)
    return memory["vectors"]


def blocks(matrix: Tensor, groups: int) -> Tensor:
    """Return the blocks on the diagonal of a square matrix [n, n], one a group: [g, n / g, n / g]."""
    size = matrix.shape[0] // groups
    return torch.stack([matrix[i * size : (i + 1) * size, i * size : (i + 1) * size] for i in range(groups)])


def spatial_matrix(weight: Tensor, groups: int) -> Tensor:
    """Return a kernel [C', C, k, k'] as the matrix [g, C k, C' k'] of which `spatial` takes the rank."""
    c_out, inner, kh, kw = weight.shape
    return weight.reshape(groups, c_out // groups, inner, kh, kw).permute(0, 2, 3, 1, 4).reshape(groups, inner * kh, -1)


def spatial(weight: Tensor, rank: int, groups: int, memory: dict[str, Tensor] | None) -> list[Tensor]:
    """Return the k x 1 and the 1 x k' kernels nearest to ``weight`` with ``rank`` channels a group between them."""
    c_out, inner, kh, kw = weight.shape
    left, right = split(spatial_matrix(weight, groups), rank, memory)
    tall = left.reshape(groups, inner, kh, rank).permute(0, 3, 1, 2)
    wide = right.reshape(groups, rank, c_out // groups, kw).transpose(1, 2)
    return [tall, wide]


def tucker(weight: Tensor, r_in: int, r_out: int, rounds: int = 3) -> list[Tensor]:
    """Return the 1 x 1, k x k and 1 x 1 kernels of the higher-order SVD with ranks ``r_in``, ``r_out``, refined."""

    def leading(tensor: Tensor, axis: int, rank: int) -> Tensor:
        flat = tensor.transpose(0, axis).flatten(1)
        basis = torch.linalg.eigh(flat @ flat.T)[1].flip(-1)[:, :rank]
        return basis if basis.shape[1] == rank else nn.functional.pad(basis, (0, rank - basis.shape[1]))

    inner, outer = leading(weight, 1, r_in), leading(weight, 0, r_out)
    for _ in range(rounds):
        outer = leading(torch.einsum("oihw,ir->orhw", weight, inner), 0, r_out)
        inner = leading(torch.einsum("oihw,or->rihw", weight, outer), 1, r_in)
    core = torch.einsum("oihw,oa,ib->abhw", weight, outer, inner)
    return [inner.T, core, outer]
