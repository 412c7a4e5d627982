"""One factor of an interleaved chain as batched matrix products over a view: the shuffle that moves no data.

Channels are seen as a grid ``[slow, K, fast]``. A group convolution after a shuffle is a contraction of the middle
axis, ``y[s, k', f] = sum_k W[s, f, k', k] x[s, k, f]``; in NCHW every row of a channel is contiguous, so a matrix
product reads and writes the strided view directly.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def contract(x: Tensor, weight: Tensor) -> Tensor:
    """Contract the middle axis of the channel grid.

    Args:
        x: [B, slow * K * fast, H, W].
        weight: [slow, fast, K', K].

    Returns:
        [B, slow * K' * fast, H, W], in the memory layout of ``x``.
    """
    slow, fast, out, into = weight.shape
    batch, _, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        grid = x.permute(0, 2, 3, 1).reshape(-1, slow, into, fast)
        y = torch.einsum("sfok,nskf->nsof", weight, grid)
        return y.reshape(batch, height, width, slow * out * fast).permute(0, 3, 1, 2)
    if fast == 1:  # neighbouring channels: the blocks of all images are one batch
        grid = x.reshape(batch, slow, into, height * width)
        return torch.matmul(weight.view(slow, out, into), grid).view(batch, slow * out, height, width)
    grid = x.reshape(batch * slow, into, fast, height * width)
    y = _Contraction.apply(grid, weight)
    return y.view(batch, slow * out * fast, height, width)


class _Contraction(torch.autograd.Function):
    """``y[b s, k', f, p] = sum_k W[s, f, k', k] x[b s, k, f, p]``, image by image, without a copy of ``x``."""

    @staticmethod
    def forward(ctx: Any, grid: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(grid, weight)
        return _products(grid, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None]:
        grid, weight = ctx.saved_tensors
        slow = weight.shape[0]
        to_grid = to_weight = None
        if ctx.needs_input_grad[0]:
            to_grid = _Contraction.apply(gradient.contiguous(), weight.transpose(2, 3).contiguous())
        if ctx.needs_input_grad[1]:
            if torch.is_grad_enabled():  # a second derivative is wanted: differentiable operators only
                parts = (t.unflatten(0, (-1, slow)) for t in (gradient, grid))
                to_weight = torch.einsum("bsofp,bskfp->sfok", *parts)
            else:
                to_weight = torch.zeros_like(weight)
                for row in range(len(grid)):
                    to_weight[row % slow].baddbmm_(gradient[row].transpose(0, 1), grid[row].permute(1, 2, 0))
        return to_grid, to_weight


def _products(grid: Tensor, weight: Tensor) -> Tensor:
    slow, fast, out, _ = weight.shape
    y = grid.new_empty(len(grid), out, fast, grid.shape[-1])
    for row in range(len(grid)):
        torch.bmm(weight[row % slow], grid[row].transpose(0, 1), out=y[row].transpose(0, 1))
    return y
