"""Second-order poolings that came after the matrix square root: DropCov and Brownian distance covariance."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from convsmith import arguments
from convsmith.pooling.covariance import covariance, triu_vector
from convsmith.pooling.inputs import HALVES, columns, float64_island
from convsmith.pooling.layers import POOLINGS, Pooling


@float64_island
def brownian_covariance(x: Tensor, log_scale: Tensor | None = None, *, ridge: float = 1e-5) -> Tensor:
    """Return the Brownian distance covariance matrix between channels, ``[B, C, H, W]`` -> ``[B, C, C]``.

    ``D_ij = sqrt(exp(log_scale) |x_i - x_j|^2 / (2 M) + ridge)`` over the channels' maps x_i, then double centring:
    rows' and columns' means out, the grand mean in. Rows sum to zero. A zero or constant map gives zeros.

    Paper: Xie et al., "Joint Distribution Matters: Deep Brownian Distance Covariance for Few-Shot Classification"
    (CVPR 2022), section 3.2.
    Differs from the paper: the learnable scale is exp(log_scale) / (2 M) with log_scale starting at zero, the same
    number at the start for any map size.

    Examples:
        >>> brownian_covariance(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 8])
    """
    arguments.number("ridge", ridge, least=0)
    x = columns(x, "brownian_covariance")
    x = x - x.mean(1, keepdim=True)  # distances between channels do not see what all channels share
    gram = x @ x.mT
    energy = gram.diagonal(dim1=1, dim2=2)
    squared = (energy[:, :, None] + energy[:, None, :] - 2.0 * gram).clamp(min=0) / (2.0 * x.shape[2])
    if log_scale is not None:
        arguments.tensor("log_scale", log_scale, rank=0, what="a number in a tensor []")
        squared = squared * log_scale.to(x.dtype).exp()
    distance = (squared + ridge).sqrt()
    rows = distance.mean(2, keepdim=True)
    return distance - rows - rows.mT + distance.mean((1, 2), keepdim=True)


@POOLINGS.register("bdc", order=2, paper="Xie et al., CVPR 2022")
class BDC(Pooling):
    """Brownian distance covariance between channels, with one learnable scale; dim (dim + 1) / 2 features."""

    @arguments.checked
    def __init__(self, in_channels: int, dim: int | None = None) -> None:
        super().__init__(in_channels, dim)
        self.log_scale = nn.Parameter(torch.zeros(()))

    def pool(self, x: Tensor) -> Tensor:
        return triu_vector(brownian_covariance(x, self.log_scale))


def drop_rate(x: Tensor) -> Tensor:
    """Return DropCov's adaptive rate, a scalar in [0, 1], from features [B, C, M].

    ``clamp(1 - 10 / log2(C) mean_b cos(y_b, c_b), 0, 1)`` with y the channels' importance (the sigmoid of their
    means) and c_i = sum_j Sigma_ij their total covariance: channels whose importance agrees with their covariance are
    kept.
    """
    importance = torch.sigmoid(x.mean(2))
    total = covariance(x).sum(2)
    agreement = nn.functional.cosine_similarity(importance, total, dim=1, eps=1e-12).mean()
    return (1.0 - 10.0 / max(math.log2(x.shape[1]), 1.0) * agreement).clamp(0.0, 1.0)


@POOLINGS.register("dropcov", order=2, paper="Wang et al., NeurIPS 2022")
class DropCov(Pooling):
    """Plain covariance after adaptive channel dropout: no root, nothing to compute at inference.

    Paper: Wang et al., "DropCov: A Simple yet Effective Method for Improving Deep Architectures" (NeurIPS 2022).
    Differs from the paper: the importance is the sigmoid of the channel means without a learned 1-D convolution (in
    the published code the rate leaves the graph as a Python number, so that convolution never gets a gradient), and
    the rate stays on the device.
    """

    def pool(self, x: Tensor) -> Tensor:
        x = x.flatten(2)
        if self.training:
            with torch.no_grad():
                rate = drop_rate(x.float() if x.dtype in HALVES else x).to(x.dtype)
                keep = torch.rand(x.shape[0], x.shape[1], 1, dtype=x.dtype, device=x.device) >= rate
                scale = torch.where(rate < 1, 1.0 / (1.0 - rate).clamp(min=1e-6), 0.0)
            x = x * keep * scale
        return triu_vector(covariance(x))
