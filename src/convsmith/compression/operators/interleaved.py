"""Interleaved group convolutions as one linear operator: a chain of group convolutions, the first of them spatial.

Zhang et al., Interleaved Group Convolutions for Deep Neural Networks (IGCV1), arXiv 1707.02725, section 3;
Xie et al., IGCV2: Interleaved Structured Sparse Convolutional Neural Networks, arXiv 1804.06202, section 3.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from convsmith.arguments import checked, one_of, spelled
from convsmith.compression.operators.backends import BACKENDS, convolution_of, dense_kernel, run_chain
from convsmith.compression.operators.chain_spec import (
    ChainSpec,
    ChannelPermutation,
    check_partitions,
    interleaved,
    mixed_radix,
    shuffled,
)
from convsmith.compression.operators.geometry import ChainGeometry, IntOrPair
from convsmith.errors import InvalidArgument


class LinearChain(nn.Module, ABC):
    """Group convolutions in a row with fixed permutations and nothing non-linear between them.

    Weights are one tensor per factor, ``weights[l]`` [out_l, members_l, k, k'] (1x1 after the first), as
    ``nn.Conv2d(groups=...)`` holds them. Any backend may run the forward pass (``operators.backends``).
    """

    def __init__(
        self,
        spec: ChainSpec,
        kernel_size: IntOrPair,
        stride: IntOrPair,
        padding: IntOrPair | None,
        dilation: IntOrPair,
        backend: str,
        device: Any,
        dtype: Any,
    ) -> None:
        super().__init__()
        geometry = ChainGeometry.of(kernel_size, stride, padding, dilation)
        one_of("backend", backend, ("auto", *BACKENDS))
        self.spec = spec
        self.geometry = geometry
        self.backend = backend
        self.weights = nn.ParameterList()
        for position, factor in enumerate(spec.factors):
            sides = geometry.kernel_size if position == 0 else (1, 1)
            shape = (factor.out_channels, factor.members_in, *sides)
            self.weights.append(nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self.reset_parameters()

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.spec.in_channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.spec.out_channels

    def reset_parameters(self, gain: float = 2.0) -> None:
        """Draw normal weights that keep the variance through the linear factors.

        Every factor has standard deviation ``sqrt(1 / fan_in)``; the first one carries ``gain`` for the rectifier that
        follows the whole chain (2: He's rule, once and not once per factor).
        """
        with torch.no_grad():
            for position, weight in enumerate(self.weights):
                fan_in = math.prod(weight.shape[1:])
                weight.normal_(0.0, math.sqrt((gain if position == 0 else 1.0) / fan_in))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H', W']."""
        if isinstance(x, fx.Proxy):
            return one_node(self, x)
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != self.in_channels:
            raise InvalidArgument(
                "the input has the channels the chain was built for",
                argument=f"[B, {self.in_channels}, H, W]",
                given=spelled(x),
            )
        return run_chain(self, x)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what TorchScript compiles in place of the chain: the dense convolution that it equals."""
        return self.to_dense()

    def composite(self) -> Tensor:
        """Return the dense kernel [out, in, k, k] this chain equals, differentiable in the weights."""
        return dense_kernel(list(self.weights), self.spec)

    def to_dense(self) -> nn.Conv2d:
        """Return the ``nn.Conv2d`` that computes the same function, with the composite as its weight."""
        with torch.no_grad():
            return convolution_of(self.composite().contiguous(), self.geometry).train(self.training)

    @abstractmethod
    def extra_repr(self) -> str:
        """Describe the chain in one line."""
        return f"{self.geometry}, backend={self.backend!r}"


class InterleavedGroupConv2d(LinearChain):
    """IGCV1's operator: a spatial group convolution, then a 1x1 group convolution across its partitions.

    ``y = P^T W_secondary P W_primary x``: the primary convolution has L = ``primary`` partitions of M = ``members``
    channels, the secondary one M partitions of L, so every input reaches every output by exactly one path and the
    composite kernel is dense: ``W[(l', m'), (l, m)] = W_secondary[m'][l', l] W_primary[l][m', m]`` (eq. 5-6). Channels
    in and out are ordered partition by partition, ``(l, m)``. Parameters: ``L M M k k + M L L``. With ``members=1`` it
    is Xception's depthwise and dense 1x1 pair; with ``primary=1`` a dense convolution followed by a scale.

    Args:
        primary: L, partitions of the primary convolution.
        members: M, channels of each.
        kernel_size, stride, dilation: of the primary convolution, each a number or a (vertical, horizontal) pair.
        padding: the same; ``dilation * (kernel_size // 2)`` unless given.
        out_primary, out_members: L and M of the output where the operator changes the width.
        secondary_groups: partitions of the secondary convolution, ``out_members`` unless given; fewer reproduce the
            authors' widening blocks and then have several paths per pair.
        backend: "auto" (the rule of ``backends.rule``) or one of ``backends.BACKENDS``.
    """

    @checked
    def __init__(
        self,
        primary: int,
        members: int,
        kernel_size: IntOrPair = 3,
        stride: IntOrPair = 1,
        padding: IntOrPair | None = None,
        dilation: IntOrPair = 1,
        *,
        out_primary: int | None = None,
        out_members: int | None = None,
        secondary_groups: int | None = None,
        backend: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        spec = interleaved(primary, members, out_primary, out_members, secondary_groups)
        super().__init__(spec, kernel_size, stride, padding, dilation, backend, device, dtype)
        self.primary, self.members = int(primary), int(members)

    def extra_repr(self) -> str:
        return f"primary={self.primary}, members={self.members}, {super().extra_repr()}"


class InterleavedStructuredConv2d(LinearChain):
    """IGCV2's operator: any number of group convolutions, the first spatial, the others 1x1, permuted in between.

    Strict (default): ``partitions`` (K_1, ..., K_n) multiply to the channels; factor l mixes digit l of the channel
    number in mixed radix, which gives exactly one path per pair (the complementary condition, section 3.2).
    ``partitions=(1, K_2, ...)`` starts with a depthwise convolution. Loose (``channels`` given): every K divides
    ``channels`` and shuffles stand in between; ``convsmith.compression.condition`` tells how many paths that makes.
    Parameters: ``K_1 k k C + K_2 C + ... + K_n C``.

    Args:
        partitions: channels per branch of each factor, in the order they act.
        out_partitions: the same after the chain, where it changes the width (strict chains only).
        channels: channels of a loose chain.
        out_channels, widen_at: width after a loose chain and the factor that changes it, 1 (the second) by default.
        kernel_size, stride, padding, dilation, backend: as in `InterleavedGroupConv2d`.
    """

    @checked
    def __init__(
        self,
        partitions: Sequence[int],
        kernel_size: IntOrPair = 3,
        stride: IntOrPair = 1,
        padding: IntOrPair | None = None,
        dilation: IntOrPair = 1,
        *,
        out_partitions: Sequence[int] | None = None,
        channels: int | None = None,
        out_channels: int | None = None,
        widen_at: int | None = None,
        backend: str = "auto",
        device: Any = None,
        dtype: Any = None,
    ) -> None:
        sizes = check_partitions(partitions)
        product = math.prod(sizes)
        if channels is None:
            if out_channels is not None or widen_at is not None:
                raise InvalidArgument(
                    "a strict chain changes its width digit by digit",
                    argument="out_channels or widen_at without channels",
                    hint="give out_partitions, or channels for a loose chain",
                )
            spec = mixed_radix(sizes, out_partitions)
        elif out_partitions is not None:
            raise InvalidArgument(
                "a loose chain changes its width by out_channels",
                argument="channels and out_partitions together",
                hint=f"leave channels out (the product {product} is implied), or give out_channels",
            )
        elif product == channels and out_channels in (None, channels):
            spec = mixed_radix(sizes)
        else:
            spec = shuffled(channels, sizes, out_channels, widen_at)
        super().__init__(spec, kernel_size, stride, padding, dilation, backend, device, dtype)
        self.partitions = sizes

    def extra_repr(self) -> str:
        shape = f"{self.in_channels} -> {self.out_channels}"
        return f"{shape}, partitions={self.partitions}, {super().extra_repr()}"


class ChannelOrder(nn.Module):
    """A fixed permutation of the channels as a module, ``y = x[:, order.index()]``."""

    def __init__(self, order: ChannelPermutation) -> None:
        super().__init__()
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        """Permute [B, C, H, W]."""
        return one_node(self, x) if isinstance(x, fx.Proxy) else self.order(x)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what TorchScript compiles in place of the views: a gather."""
        return _Gather(self.order.index())

    def extra_repr(self) -> str:
        return f"view={self.order.view}, dims={self.order.dims}"


class _Gather(nn.Module):
    """``y = x[:, index]``."""

    def __init__(self, index: Tensor) -> None:
        super().__init__()
        self.index: Tensor
        self.register_buffer("index", index, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)


def one_node(module: nn.Module, x: fx.Proxy) -> Any:
    """Return the symbolic result of a module that looks at shapes: symbolic tracing makes it one node."""
    tracer: Any = x.tracer
    return tracer.create_proxy("call_module", tracer.path_of_module(module), (x,), {})
