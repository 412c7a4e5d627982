"""Low-rank layers: one convolution becomes a chain of thinner ones (SVD, spatial SVD, Tucker-2).

``svd``      k x k to r channels, then 1 x 1 (Zhang et al. 2015, "Accelerating very deep convolutional networks",
             section 3.1: the best rank-r linear response; with images the basis is that of the layer's outputs);
``spatial``  k x 1 to r channels, then 1 x k (Jaderberg et al. 2014, scheme 2; Tai et al. 2016, closed form);
``tucker``   1 x 1, k x k, 1 x 1 (Kim et al. 2016), higher-order SVD refined by three rounds of alternation;
``interpolative``  as ``svd``, r^2 numbers cheaper: r outputs (or inputs) are taken over as they are, the others are
             their combinations (Cheng et al. 2005, "On the compression of low rank matrices", section 3).

Grouped convolutions are factored group by group, transposed ones as 1 x 1 then transposed, linear layers as two. At
full rank every one is exact (an interpolative layer stops at one less). None is kept that costs more than the layer it
replaces unless the rank is explicit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.compression.methods import factors
from convsmith.compression.methods.factors import Outputs
from convsmith.compression.planning.moments import Moments, reduced_rank
from convsmith.compression.planning.replacement import StandIn, fresh_like
from convsmith.errors import InvalidArgument
from convsmith.inspection.layers import Layer, Weighted

DECOMPOSITIONS = ("svd", "interpolative", "spatial", "tucker")
#: those of one matrix [C', C k^2], which images can give a better basis
BY_OUTPUTS = DECOMPOSITIONS[:2]


class LowRank(StandIn, nn.Sequential):
    """A chain of linear layers that stands for one; only the last has a bias."""

    decomposition = "svd"

    def refit(self, weight: Tensor, moments: Moments, bias: Tensor | None) -> None:
        """Take over dense weights [g, o, d]; see `convsmith.compression.planning.reconstruct`.

        `BY_OUTPUTS`: with the least error on inputs of these ``moments``; the others: in the norm of the weights.
        """
        layers: list[Weighted] = list(self)
        groups = weight.shape[0]
        if self.decomposition in BY_OUTPUTS:
            parts = list(reduced_rank(weight, moments, layers[0].weight.shape[0] // groups))
        else:
            kh, kw = (max(layer.kernel_size[i] for layer in layers) for i in (0, 1))
            kernel = weight.reshape(weight.shape[0] * weight.shape[1], -1, kh, kw)
            if self.decomposition == "spatial":
                parts = factors.spatial(kernel, layers[0].out_channels // groups, groups, None)
            else:
                parts = factors.tucker(kernel, layers[0].out_channels, layers[1].out_channels)
        self.take(parts, bias)

    @torch.no_grad()
    def shift(self, lost: Tensor) -> None:
        """Add ``lost`` [C'] to the outputs, by the bias."""
        last: Any = self[-1]
        last.bias.add_(lost)

    @torch.no_grad()
    def take(self, parts: Sequence[Tensor], bias: Tensor | None) -> None:
        """Take over the factors, one a layer, and the bias of the whole [C']."""
        layers: list[Weighted] = list(self)
        for layer, part in zip(layers, parts, strict=True):
            layer.weight.copy_(part.reshape(layer.weight.shape))
        if bias is not None:
            layers[-1].bias.copy_(bias)


class LowRankTransposed(LowRank):
    """A pointwise convolution and a transposed one, called as ``nn.ConvTranspose2d`` is."""

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        """Return [B, C', H', W']."""
        return self[1](self[0](x), output_size)  # type: ignore[no-any-return]


class Interpolative(LowRank):
    """Two convolutions [B, C, H, W] of which the smaller map's r numbers a position need no multiplication.

    y = (z, T z) in the right order, z = A x; or, where the outputs are more than the inputs, y = B (x_1 + S x_2).
    """

    decomposition = "interpolative"

    def __init__(self, first: nn.Conv2d, second: nn.Conv2d, *, joins: bool) -> None:
        super().__init__(first, second)
        self.joins = joins
        width = first.out_channels + (second.out_channels if joins else first.in_channels)
        self.order: Tensor
        self.register_buffer("order", torch.arange(width, device=first.weight.device))

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C', H', W']."""
        first, second = self[0], self[1]
        if self.joins:
            z = first(x)
            return torch.cat([z, second(z)], 1).index_select(1, self.order)
        x, rank = x.index_select(1, self.order), first.out_channels
        return second(x[:, :rank] + first(x[:, rank:]))  # type: ignore[no-any-return]

    @torch.no_grad()
    def shift(self, lost: Tensor) -> None:
        """Add ``lost`` [C'] to the outputs, by the biases."""
        if self.joins:
            first: Any = self[0]
            lost, rank = lost[self.order.argsort()], first.out_channels
            first.bias.add_(lost[:rank])
            lost = lost[rank:] - self[1].weight.flatten(1) @ lost[:rank]  # type: ignore[operator]
        super().shift(lost)

    @torch.no_grad()
    def take(self, parts: Sequence[Tensor], bias: Tensor | None) -> None:
        """Take over [r, d] and [o, r]: the rows (or columns) that LU's pivots choose become the identity."""
        into, out = (part[0] for part in parts)
        chosen, lower, upper = torch.linalg.lu(out if self.joins else into.mT)
        rank, chosen = lower.shape[1], chosen.argmax(0)
        core, top = lower[:rank] @ upper, lower[:rank]
        mixed = torch.linalg.solve_triangular(top, lower[rank:], upper=False, left=False, unitriangular=True)
        into, out = (core @ into, mixed) if self.joins else (mixed.mT, out @ core.mT)
        self.order.copy_(chosen.argsort() if self.joins else chosen)
        if bias is not None and self.joins:
            first: Any = self[0]
            first.bias.copy_(bias[chosen[:rank]])
            bias = bias[chosen[rank:]] - mixed @ bias[chosen[:rank]]
        super().take([into, out], bias)


def full_rank(module: Weighted, decomposition: str) -> int:
    """Return the largest useful rank (per group) of ``decomposition`` for ``module``; 0 where it does not apply."""
    if isinstance(module, nn.Linear):
        return min(module.in_features, module.out_features) if decomposition == "svd" else 0
    groups, (kh, kw) = module.groups, module.kernel_size
    inner, outer = module.in_channels // groups, module.out_channels // groups
    if isinstance(module, nn.ConvTranspose2d):
        return min(inner, outer * kh * kw) if decomposition == "svd" else 0
    if decomposition in BY_OUTPUTS:
        most = min(inner * kh * kw, outer)
        return most if decomposition == "svd" else most - 1 if groups == 1 else 0
    if decomposition == "spatial":
        return min(inner * kh, outer * kw) if kh > 1 and kw > 1 else 0
    return max(inner, outer) if groups == 1 and kh * kw > 1 else 0


def tucker_ranks(module: Weighted, rank: int) -> tuple[int, int]:
    """Return (input rank, output rank) for ``rank`` out of `full_rank`: both sides shrink by the same share."""
    share = rank / max(module.in_channels, module.out_channels)
    return max(1, round(module.in_channels * share)), max(1, round(module.out_channels * share))


def skeleton(module: Weighted, decomposition: str, rank: int) -> LowRank:
    """Return the chain for ``module`` with fresh weights, frozen where the layer is."""
    chain = _skeleton(module, decomposition, rank)
    chain.decomposition = decomposition
    return chain


def _skeleton(module: Weighted, decomposition: str, rank: int) -> LowRank:
    if isinstance(module, nn.Linear):
        return LowRank(fresh_like(module, out_features=rank, bias=False), fresh_like(module, in_features=rank))
    plain: dict[str, Any] = {"kernel_size": 1, "stride": 1, "padding": 0, "dilation": 1}
    g, p = module.groups, module.padding
    if isinstance(module, nn.ConvTranspose2d):
        first = fresh_like(module, nn.Conv2d, out_channels=g * rank, bias=False, **plain)
        return LowRankTransposed(first, fresh_like(module, in_channels=g * rank))
    if decomposition == "svd":
        first = fresh_like(module, out_channels=g * rank, bias=False)
        return LowRank(first, fresh_like(module, in_channels=g * rank, padding_mode="zeros", **plain))
    if decomposition == "interpolative":
        pointwise = module.weight[0, 0].numel() == 1 and set(module.stride) == {1} and p in ("same", "valid", (0, 0))
        if pointwise and module.in_channels < module.out_channels:
            first = fresh_like(module, in_channels=module.in_channels - rank, out_channels=rank, bias=False)
            return Interpolative(first, fresh_like(module, in_channels=rank), joins=False)
        rest = module.out_channels - rank
        second = fresh_like(module, in_channels=rank, out_channels=rest, padding_mode="zeros", **plain)
        return Interpolative(fresh_like(module, out_channels=rank), second, joins=True)
    if decomposition == "spatial":
        tall, wide = (p, p) if isinstance(p, str) else ((p[0], 0), (0, p[1]))
        (kh, kw), (sh, sw), (dh, dw) = module.kernel_size, module.stride, module.dilation
        sizes: list[dict[str, Any]] = [
            {"kernel_size": (kh, 1), "stride": (sh, 1), "padding": tall, "dilation": (dh, 1)},
            {"kernel_size": (1, kw), "stride": (1, sw), "padding": wide, "dilation": (1, dw)},
        ]
        first = fresh_like(module, out_channels=g * rank, bias=False, **sizes[0])
        return LowRank(first, fresh_like(module, in_channels=g * rank, **sizes[1]))
    r_in, r_out = tucker_ranks(module, rank)
    return LowRank(
        fresh_like(module, out_channels=r_in, bias=False, padding_mode="zeros", **plain),
        fresh_like(module, in_channels=r_in, out_channels=r_out, bias=False),
        fresh_like(module, in_channels=r_out, padding_mode="zeros", **plain),
    )


def factor(
    module: Weighted,
    decomposition: str,
    rank: int,
    outputs: Outputs | None = None,
    *,
    memory: dict[str, Tensor] | None = None,
) -> LowRank:
    """Return the chain that comes closest to ``module``.

    Closest in the Frobenius norm of the kernel; with ``outputs`` (`BY_OUTPUTS` of a plain layer) in the mean squared
    error of the layer's outputs, the bias corrected for what is cut off. ``memory`` keeps the factors for further ranks
    of the same layer, decomposition and outputs.

    Raises:
        InvalidArgument: the decomposition does not apply to this layer, or the rank is not in 1..full rank.
    """
    most = full_rank(module, decomposition) if decomposition in DECOMPOSITIONS else 0
    if not 1 <= rank <= most:
        raise InvalidArgument(
            "a rank lies between 1 and the layer's full rank, and its decomposition must apply to the layer",
            argument=f"decomposition {decomposition!r}, rank {rank}",
            given=f"{module} whose full rank in this decomposition is {most}",
            hint=f"decompositions: {', '.join(f for f in DECOMPOSITIONS if full_rank(module, f))}",
        )
    chain = skeleton(module, decomposition, rank)
    weight = module.weight.detach().double()
    bias = module.bias
    if isinstance(module, nn.ConvTranspose2d):
        left, right = factors.split(weight.reshape(module.groups, weight.shape[0] // module.groups, -1), rank, memory)
        parts = [left.mT, right]
    elif decomposition == "spatial":
        parts = factors.spatial(weight, rank, module.groups, memory)
    elif decomposition == "tucker":
        parts = factors.tucker(weight, *tucker_ranks(module, rank))
    else:
        groups = getattr(module, "groups", 1)
        parts, shift = factors.svd(weight, rank, groups, outputs, memory)
        if bias is not None:
            bias = bias.detach().double() + shift
    chain.take(parts, bias)
    return chain


def spectrum(module: Weighted, decomposition: str, outputs: Outputs | None = None) -> Tensor:
    """Return the share of energy kept at every rank 1..full rank [full_rank], non-decreasing up to 1.

    Grouped layers: the mean over all groups' energy. Tucker: the product bound of both sides' energies.
    """
    weight = module.weight.detach().double()
    if decomposition == "tucker":
        kept = []
        sides = [factors.energies(weight.transpose(0, axis).flatten(1)) for axis in (1, 0)]
        for rank in range(1, full_rank(module, decomposition) + 1):
            cut = zip(sides, tucker_ranks(module, rank), strict=True)
            kept.append(1 - sum(float(side[r:].sum() / side.sum().clamp_min(1e-300)) for side, r in cut))
        return torch.tensor(kept, dtype=torch.float64).clamp(0, 1)
    groups = getattr(module, "groups", 1)
    if decomposition == "spatial":
        values = factors.energies(factors.spatial_matrix(weight, groups))
    elif outputs is not None and not isinstance(module, nn.ConvTranspose2d):
        values = torch.linalg.eigvalsh(factors.blocks(outputs.covariance, groups)).flip(-1).clamp_min(0)
    else:
        values = factors.energies(weight.reshape(groups, weight.shape[0] // groups, -1))
    most = full_rank(module, decomposition)
    values = values[:, : most + (decomposition == "interpolative")].sum(0)
    total = values.sum()
    return (values.cumsum(0) / total if total > 0 else torch.ones_like(values)).clamp(max=1.0)[:most]


def counts(layer: Layer, decomposition: str, rank: int) -> tuple[int, int]:
    """Return (MACs for one image, parameters) of the chain in the place of ``layer``."""
    module = layer.module
    bias = 0 if module.bias is None else module.bias.numel()
    places = layer.macs // module.weight.numel()  # of all calls: a layer may run on windows of an image
    if isinstance(module, nn.Linear):
        weights = rank * (module.in_features + module.out_features)
        return weights * places, weights + bias
    c_in, c_out, (kh, kw) = module.in_channels, module.out_channels, module.kernel_size
    if isinstance(module, nn.ConvTranspose2d):
        weights = c_in * rank + rank * c_out * kh * kw
        return weights * places, weights + bias
    if decomposition in BY_OUTPUTS:
        weights = rank * (c_in * kh * kw + c_out - (rank if decomposition == "interpolative" else 0))
        return weights * places, weights + bias
    (in_high, in_wide), (out_high, out_wide) = layer.input_shape[2:], layer.output_shape[2:]
    if decomposition == "spatial":
        tall, wide = rank * c_in * kh, c_out * rank * kw
        return tall * places * in_wide // out_wide + wide * places, tall + wide + bias
    r_in, r_out = tucker_ranks(module, rank)
    core = r_in * r_out * kh * kw + r_out * c_out
    before = places * in_high * in_wide // (out_high * out_wide)
    return c_in * r_in * before + core * places, c_in * r_in + core + bias
