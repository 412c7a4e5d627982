"""What stands in a convolution's place once it is interleaved: a chain, and what a chain cannot hold.

A chain approximates blocks of output channels, each by rank one in every primary partition. A trained network numbers
its channels as it likes, so the outputs are computed in an order in which those of one block are alike, and handed on
in the network's own.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import integer
from convsmith.compression.operators.interleaved import InterleavedGroupConv2d
from convsmith.compression.operators.projection import Projection, project
from convsmith.compression.planning.moments import Moments, by_group, damped
from convsmith.compression.planning.replacement import StandIn, fresh_like
from convsmith.inspection.layers import Weighted

#: largest input patch (channels x taps) for which the data-aware projection is used: its cost grows with the cube
AWARE_PATCH = 1152
#: rounds of refinement when a layer is made, and when its weights are re-solved
SWEEPS, REFIT_SWEEPS = 30, 12


class Interleaved(StandIn):
    """Some output channels by a dense convolution, the others by an interleaved chain, in order, and a bias.

    [B, C, H, W] to [B, C', H', W'].
    """

    def __init__(self, chain: InterleavedGroupConv2d, dense: nn.Conv2d | None, *, bias: bool, ordered: bool) -> None:
        super().__init__()
        self.chain = chain
        self.dense = dense
        width = chain.out_channels + (0 if dense is None else dense.out_channels)
        like: dict[str, Any] = {"device": chain.weights[0].device}
        self.order: Tensor | None
        self.register_buffer("order", torch.arange(width, **like) if ordered else None)
        self.bias = nn.Parameter(torch.zeros(width, dtype=chain.weights[0].dtype, **like)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        """Return [B, C', H', W']."""
        y: Tensor = self.chain(x)
        if self.dense is not None:
            y = torch.cat([self.dense(x), y], 1)
        if self.order is not None:
            y = y.index_select(1, self.order)
        if self.bias is not None:
            y = y + self.bias.view(1, -1, 1, 1)
        return y

    def refit(self, weight: Tensor, moments: Moments, bias: Tensor | None) -> None:
        """Take over dense weights [1, o, d] with the least error on inputs of these ``moments``."""
        self.take(weight[0], moments.damped()[0], REFIT_SWEEPS)
        if bias is not None and self.bias is not None:
            with torch.no_grad():
                self.bias.copy_(bias)

    @torch.no_grad()
    def shift(self, lost: Tensor) -> None:
        """Add ``lost`` [C'] to the outputs, by the bias."""
        if self.bias is not None:
            self.bias.add_(lost)

    @torch.no_grad()
    def take(self, weight: Tensor, moment: Tensor | None, sweeps: int) -> None:
        """Come near to dense weights [o, d], for inputs of second moments ``moment`` [d, d], in the better order."""
        chain, dense = self.chain, 0 if self.dense is None else self.dense.out_channels
        members = chain.weights[0].shape[0] // chain.primary
        sizes = (chain.members, chain.primary), (members, chain.out_channels // members)
        if weight.shape[1] > AWARE_PATCH:
            moment = None

        def projected(order: Tensor, sweeps: int) -> tuple[float, Projection]:
            kernel = weight[order[dense:]].reshape(chain.out_channels, chain.in_channels, *chain.weights[0].shape[2:])
            found = project(kernel, *sizes, second_moment=moment, sweeps=sweeps)
            return found.output_energy if found.output_energy is not None else found.energy, found

        order = torch.arange(len(weight), device=weight.device)
        if self.order is not None:
            orders = order, alike(weight, sizes[1][1], dense, moment)
            order = max(orders, key=lambda one: projected(one, 1)[0])  # one round tells; of equal ones the natural
            self.order.copy_(order.argsort())
        found = projected(order, sweeps)[1]
        if self.dense is not None:
            self.dense.weight.copy_(weight[order[:dense]].reshape(self.dense.weight.shape))
        for parameter, part in zip(chain.weights, found.weights, strict=True):
            parameter.copy_(part)

    @property
    def in_order(self) -> bool:
        """Return whether the outputs are computed in the order in which they are handed on."""
        return self.order is None or bool((self.order.diff() > 0).all())


def alike(weight: Tensor, size: int, dense: int, moment: Tensor | None) -> Tensor:
    """Return an order of the rows of ``weight`` [o, d]: ``dense`` of them, then those of one block in equal distances.

    Blocks have ``size`` rows. One grows from a row with near neighbours by the row that lies nearest to what it holds,
    by the cosines of the outputs (of second moments ``moment`` of the inputs) without their sign. The ``dense`` ones
    are those that no block took.
    """
    if size < 2:
        return torch.arange(len(weight), device=weight.device)
    rows = weight.double()
    if moment is not None:
        rows = rows @ torch.linalg.cholesky(damped(moment, 1e-6))
    rows = nn.functional.normalize(rows, dim=1)
    near = (rows @ rows.mT).abs().fill_diagonal_(0)
    seeds = near.topk(size - 1, 1).values.sum(1).argsort(descending=True, stable=True).tolist()
    left = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    blocks: list[int] = []
    for seed in seeds:
        if len(blocks) == len(rows) - dense:
            break
        if not bool(left[seed]):
            continue
        left[seed] = False
        blocks.append(seed)
        sums = near[seed].clone()
        for _ in range(size - 1):
            nearest = int(torch.where(left, sums, -1.0).argmax())
            left[nearest] = False
            blocks.append(nearest)
            sums += near[nearest]
    order = torch.tensor(blocks, device=rows.device).view(-1, size).T.reshape(-1)
    return torch.cat([left.nonzero()[:, 0], order])


def skeleton(conv: Weighted, setting: dict[str, Any]) -> Interleaved:
    """Return the layer for ``conv`` with fresh weights, frozen where that is."""
    (members, primary), (out_members, out_primary) = setting["partitions"], setting["out_partitions"]
    dense = integer("dense", setting.get("dense", 0), least=0, most=conv.out_channels - 1)
    chain = InterleavedGroupConv2d(
        primary,
        members,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        out_primary=out_primary,
        out_members=out_members,
        backend=setting["backend"],
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    beside = fresh_like(conv, out_channels=dense, bias=False) if dense else None
    made = Interleaved(chain, beside, bias=conv.bias is not None, ordered=setting["ordered"])
    chain.requires_grad_(conv.weight.requires_grad)
    if made.bias is not None:
        made.bias.requires_grad_(conv.bias.requires_grad)
    return made


def projected(conv: Weighted, setting: dict[str, Any], moment: Tensor | None, sweeps: int = SWEEPS) -> Interleaved:
    """Return the layer nearest to ``conv``, for inputs of second moments ``moment`` [d, d]."""
    made = skeleton(conv, setting)
    made.take(by_group(conv)[0], moment, sweeps)
    if made.bias is not None:
        with torch.no_grad():
            made.bias.copy_(conv.bias)
    return made
