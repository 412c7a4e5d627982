"""The published iSQRT-COV layers, written again from their description: the baseline of the pooling suite.

From Li et al. (CVPR 2018), section 3 and its public implementation's documented behaviour: the centring matrix and the
identity exist once per sample, Y and Z of every step are kept for the backward pass, the hand-written backward pass
visits the steps in reverse, and the trace's part of the gradient is added in a loop over the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convsmith.pooling import covariance


def _identities(batch: int, size: int, like: Tensor) -> Tensor:
    return torch.eye(size, dtype=like.dtype, device=like.device).unsqueeze(0).repeat(batch, 1, 1)


class PublishedCovariance(torch.autograd.Function):
    """[B, C, H, W] -> [B, C, C] through the M x M centring matrix of every sample."""

    @staticmethod
    def forward(ctx: Any, images: Tensor) -> Tensor:
        batch, channels = images.shape[:2]
        x = images.reshape(batch, channels, -1)
        m = x.shape[2]
        centring = _identities(batch, m, x) / m - torch.ones(batch, m, m, dtype=x.dtype, device=x.device) / (m * m)
        ctx.save_for_backward(x, centring)
        ctx.shape = images.shape
        return x.bmm(centring).bmm(x.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        x, centring = ctx.saved_tensors
        grad = grads[0] + grads[0].transpose(1, 2)
        return grad.bmm(x).bmm(centring).reshape(ctx.shape)


class PublishedRoot(torch.autograd.Function):
    """[B, C, C] -> the compensated Newton-Schulz root, all Y and Z kept."""

    @staticmethod
    def forward(ctx: Any, sigma: Tensor, iterations: int) -> Tensor:
        batch, d = sigma.shape[:2]
        three = 3.0 * _identities(batch, d, sigma)
        trace = (sigma * three).sum((1, 2)) / 3.0
        a = sigma / trace.view(batch, 1, 1)
        y = torch.zeros(batch, iterations, d, d, dtype=sigma.dtype, device=sigma.device)
        z = torch.eye(d, dtype=sigma.dtype, device=sigma.device).view(1, 1, d, d).repeat(batch, iterations, 1, 1)
        t = 0.5 * (three - a)
        y[:, 0], z[:, 0] = a.bmm(t), t
        for k in range(1, iterations - 1):
            t = 0.5 * (three - z[:, k - 1].bmm(y[:, k - 1]))
            y[:, k], z[:, k] = y[:, k - 1].bmm(t), t.bmm(z[:, k - 1])
        last = 0.5 * y[:, iterations - 2].bmm(three - z[:, iterations - 2].bmm(y[:, iterations - 2]))
        ctx.save_for_backward(sigma, a, last, trace, y, z)
        ctx.iterations = iterations
        return last * trace.sqrt().view(batch, 1, 1)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        sigma, a, last, trace, ys, zs = ctx.saved_tensors
        g = grads[0]
        batch, d = sigma.shape[:2]
        three = 3.0 * _identities(batch, d, sigma)
        scaled = g * trace.sqrt().view(batch, 1, 1)
        compensation = (g * last).sum((1, 2)) / (2.0 * trace.sqrt())
        y, z = ys[:, ctx.iterations - 2], zs[:, ctx.iterations - 2]
        gy = 0.5 * (scaled.bmm(three - y.bmm(z)) - z.bmm(y).bmm(scaled))
        gz = -0.5 * y.bmm(scaled).bmm(y)
        for k in range(ctx.iterations - 3, -1, -1):
            y, z = ys[:, k], zs[:, k]
            rest, zy = three - y.bmm(z), z.bmm(y)
            gy, gz = (
                0.5 * (gy.bmm(rest) - z.bmm(gz).bmm(z) - zy.bmm(gy)),
                0.5 * (rest.bmm(gz) - y.bmm(gy).bmm(y) - gz.bmm(zy)),
            )
        ga = (0.5 * (gy.bmm(three - a) - gz - a.bmm(gy))).transpose(1, 2)
        inner = (ga * sigma).sum((1, 2))
        out = ga / trace.view(batch, 1, 1)
        for i in range(batch):
            share = compensation[i] - inner[i] / trace[i] ** 2
            out[i] += share * torch.eye(d, dtype=sigma.dtype, device=sigma.device)
        return out, None


def published_isqrt(images: Tensor, iterations: int = 5) -> Tensor:
    """Return the published layers' root of the covariance, [B, C, H, W] -> [B, C, C]."""
    return PublishedRoot.apply(PublishedCovariance.apply(images), iterations)


def coupled(a: Tensor, iterations: int = 5) -> tuple[Tensor, Tensor | None]:
    """Return (Y_N, Z_{N-1}) of the published recurrence, [B, d, d] each, in 3 N - 3 products (1 for N = 1).

    The last step leaves Z out, as published; Z is None for N = 1. ``a`` must be normalised already. Plain
    differentiable operations.
    """
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    z = 1.5 * eye - 0.5 * a
    y = a @ z
    if iterations == 1:
        return y, None
    for _ in range(iterations - 2):
        t = 1.5 * eye - 0.5 * (z @ y)
        y, z = y @ t, t @ z
    return y @ (1.5 * eye - 0.5 * (z @ y)), z


def plain_isqrt(images: Tensor, iterations: int = 5) -> Tensor:
    """Return the same root, [B, C, H, W] -> [B, C, C], with its gradient left to autograd."""
    sigma = covariance(images)
    trace = sigma.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    return coupled(sigma / trace, iterations)[0] * trace.sqrt()
