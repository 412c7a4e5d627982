"""Put the features of all ranks together, with gradient, so that several processes equal one."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def world_size() -> int:
    """Return the number of processes of the running group, 1 without one."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def sum_over_ranks(x: Tensor) -> Tensor:
    """Return the sum of ``x`` over all ranks (no gradient); ``x`` itself with one process."""
    if world_size() == 1:
        return x
    total = x.detach().clone()
    dist.all_reduce(total)
    return total


class _Gather(torch.autograd.Function):
    """Concatenate over ranks; the backward pass sums every rank's gradient and returns the local rows."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        sizes = [torch.zeros((), dtype=torch.long, device=x.device) for _ in range(world_size())]
        dist.all_gather(sizes, torch.tensor(len(x), device=x.device))
        rows = [int(size) for size in sizes]
        # all_gather wants equal shapes: pad to the longest rank, cut afterwards
        padded = x.new_zeros((max(rows), *x.shape[1:]))
        padded[: len(x)] = x
        parts = [torch.empty_like(padded) for _ in rows]
        dist.all_gather(parts, padded)
        ctx.first = sum(rows[: dist.get_rank()])
        ctx.rows = len(x)
        return torch.cat([part[:n] for part, n in zip(parts, rows, strict=True)])

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total[ctx.first : ctx.first + ctx.rows]


def gather(x: Tensor) -> Tensor:
    """Return ``x`` [B_r, ...] of all ranks as [sum B_r, ...], rank by rank; batch sizes may differ.

    Every rank computes the same loss of all rows. The backward pass sums the gradients of all ranks, which is the
    number of ranks times the gradient of one loss; data-parallel averaging divides by the same number, so the
    parameters receive exactly the gradient of one process. (Gathering without gradient, or with the local slice only,
    is too small by the number of ranks.) With one process ``x`` is returned unchanged.
    """
    if world_size() == 1:
        return x
    gathered: Tensor = _Gather.apply(x)
    return gathered


def count_per_rank(count: int, like: Tensor) -> float | Tensor:
    """Return the divisor whose mean over ranks makes the sum of all losses a mean over all images of all ranks."""
    if world_size() == 1:
        return float(max(count, 1))
    return (sum_over_ranks(torch.tensor(float(count), device=like.device)) / world_size()).clamp_min(1 / world_size())
