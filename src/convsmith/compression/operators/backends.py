"""Three ways to run a chain of group convolutions; all give the same numbers, none is the fastest everywhere.

==========  =========================================================================================================
``group``   the definition: grouped convolutions with channel shuffles between (exports without a gather)
``matmul``  shuffle-free: a factor contracts one axis of the view ``[slow, K, fast]`` as a batched product
``dense``   the composite kernel, computed in the call, in one dense convolution
==========  =========================================================================================================

``auto`` follows the rule of `rule`: from shapes, layout, dtype, device and mode, never from a clock, so that one call
gives the same bits today and tomorrow. `convsmith.compression.tune` measures where a person asks for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.compression.operators.chain_spec import ChainSpec, ChannelPermutation, is_channels_last
from convsmith.compression.operators.geometry import ChainGeometry

#: a narrow chain with more than this share of the dense layer's weights runs dense (docs/compression/backends.md)
DENSE_SHARE = 0.2
#: most channels of such a chain: wider, the batched products were as fast as the dense layer or faster at every share
DENSE_CHANNELS = 128
#: bytes of an input channels last from which ``matmul``, whose results are small, beats ``group``, whose are as large
LARGE = 1 << 23
#: positions per row of the composite kernel that make its computation small beside the convolution
POSITIONS_PER_MEMBER = 32


class Chain(Protocol):
    """What a backend needs of a chain (a `LinearChain`)."""

    spec: ChainSpec
    geometry: ChainGeometry
    weights: nn.ParameterList
    backend: str


def dense_kernel(weights: Sequence[Tensor], spec: ChainSpec) -> Tensor:
    """Return the composite kernel [out, in, k, k] of a chain: the later factors applied to the first one's kernel."""
    first = block_diagonal(weights[0], spec.factors[0].groups)
    kernel = first.flatten(2)[None]
    for weight, factor in zip(weights[1:], spec.factors[1:], strict=True):
        kernel = F.conv2d(_ordered(kernel, factor.order), weight, groups=factor.groups)
    kernel = _ordered(kernel, spec.final_order)[0]
    if spec.factors[0].order is not None:
        kernel = kernel[:, spec.factors[0].order.inverse().index().to(kernel.device)]
    return kernel.reshape(spec.out_channels, spec.in_channels, *first.shape[2:])


def block_diagonal(weight: Tensor, groups: int) -> Tensor:
    """Return the dense weights [out, in, k, k] of a group convolution's [out, in / groups, k, k]."""
    out, members, *sides = weight.shape
    blocks = weight.view(groups, out // groups, 1, members, *sides)
    eye = torch.eye(groups, dtype=weight.dtype, device=weight.device).view(groups, 1, groups, 1, 1, 1)
    return (blocks * eye).reshape(out, groups * members, *sides)


def _ordered(x: Tensor, order: ChannelPermutation | None) -> Tensor:
    return x if order is None else order(x)


def convolution_of(kernel: Tensor, geometry: Any) -> nn.Conv2d:
    """Return the dense layer of weights [out, in, k, k] with the stride, padding and dilation of ``geometry``."""
    out, in_channels, *sides = kernel.shape
    settings = (geometry.stride, geometry.padding, geometry.dilation)
    layer = nn.Conv2d(in_channels, out, sides, *settings, bias=False, device="meta")  # type: ignore[arg-type]
    layer.weight = nn.Parameter(kernel)
    return layer


def by_group(x: Tensor, chain: Chain) -> Tensor:
    """Run grouped convolutions with a shuffle before each: the definition."""
    for position, factor in enumerate(chain.spec.factors):
        weight = chain.weights[position]  # torch 2.8's compiler does not go through a ParameterList in a zip
        g = chain.geometry if position == 0 else ChainGeometry()
        x = F.conv2d(_ordered(x, factor.order), weight, None, g.stride, g.padding, g.dilation, groups=factor.groups)
    return _ordered(x, chain.spec.final_order)


def by_matmul(x: Tensor, chain: Chain) -> Tensor:
    """Run 1x1 factors as batched products over one axis of a view; the spatial factor stays a grouped convolution.

    Without gradients the images pass one after the other, so that what lies between the factors stays in the cache.
    """
    weights = list(chain.weights)
    if x.device.type != "meta" and torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    spec, g = chain.spec, chain.geometry
    parts = list(zip(weights, spec.factors, strict=True))
    if not g.is_pointwise:
        weight, factor = parts.pop(0)
        x = F.conv2d(_ordered(x, factor.order), weight, None, g.stride, g.padding, g.dilation, groups=factor.groups)
    views = []
    for weight, factor in parts:
        slow, fast = (factor.slow, factor.fast) if spec.is_view else (factor.groups, 1)
        views.append((weight.view(slow, fast, factor.members_out, factor.members_in), factor.order))

    def products(x: Tensor) -> Tensor:
        for weight, order in views:
            x = contract(x if spec.is_view else _ordered(x, order), weight)
        return x if spec.is_view else _ordered(x, spec.final_order)

    if len(x) < 2 or x.device.type != "cpu" or is_traced(x) or needs_gradient(x, weights):
        return products(x)
    if spec.is_view and not is_channels_last(x):
        return _image_by_image(x, [weight for weight, _ in views])
    return torch.cat([products(image) for image in x.split(1)])


def _image_by_image(x: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """Contract [B, C, H, W] with ``weights`` [slow, fast, K', K] in turn, every image through the same buffers."""
    places = x.shape[2] * x.shape[3]
    blocks = [weight.flatten(0, 1) for weight in weights]
    buffers = [x.new_empty(*block.shape[:2], places) for block in blocks]
    y = x.new_empty(len(x), buffers[-1].numel() // places, *x.shape[2:])
    for image, row in zip(x, y, strict=True):
        for weight, block, buffer in zip(weights, blocks, buffers, strict=True):
            slow, fast, _, members = weight.shape
            grid = image.reshape(slow, members, fast, places).transpose(1, 2)
            torch.bmm(block, grid.reshape(slow * fast, members, places), out=buffer)
            image = buffer.view(slow, fast, -1, places).transpose(1, 2)
        row.view(image.shape).copy_(image)
    return y


def contract(x: Tensor, weight: Tensor) -> Tensor:
    """Contract the middle axis of the channel grid, ``y[s, k', f] = sum_k W[s, f, k', k] x[s, k, f]``.

    Args:
        x: [B, slow * K * fast, H, W].
        weight: [slow, fast, K', K].

    Returns:
        [B, slow * K' * fast, H, W], in the memory layout of ``x``.
    """
    slow, fast, members_out, members_in = weight.shape
    batch, _, height, width = x.shape
    if is_channels_last(x):
        grid = x.permute(0, 2, 3, 1).reshape(-1, slow, members_in, fast)
        y = torch.einsum("sfok,nskf->nsof", weight, grid)
        return y.reshape(batch, height, width, slow * members_out * fast).permute(0, 3, 1, 2)
    if fast == 1:  # neighbouring channels: the blocks of all images are one batch
        grid = x.reshape(batch, slow, members_in, height * width)
        return torch.matmul(weight[:, 0], grid).view(batch, slow * members_out, height, width)
    grid = x.reshape(batch, slow, members_in, fast, height * width).transpose(2, 3)
    y = torch.matmul(weight, grid).transpose(2, 3)
    return y.reshape(batch, slow * members_out * fast, height, width)


def by_dense(x: Tensor, chain: Chain) -> Tensor:
    """Run one dense convolution with the composite kernel."""
    g = chain.geometry
    kernel = dense_kernel(list(chain.weights), chain.spec)
    if is_channels_last(x):
        kernel = kernel.contiguous(memory_format=torch.channels_last)
    return F.conv2d(x, kernel, None, g.stride, g.padding, g.dilation)


BACKENDS: dict[str, Callable[..., Tensor]] = {"group": by_group, "matmul": by_matmul, "dense": by_dense}


def run_chain(chain: Chain, x: Tensor) -> Tensor:
    """Run ``chain`` on ``x`` by its own backend, or by the one of `rule` where that is ``auto``."""
    return BACKENDS[rule(x, chain) if chain.backend == "auto" else chain.backend](x, chain)


def rule(x: Tensor, chain: Chain) -> str:
    """Return the backend ``auto`` stands for.

    ``group`` where gradients are needed, where a graph is traced, compiled, exported or counted, off the CPU, in half
    precision and where there are no images. Else ``dense`` if the chain has at most `DENSE_CHANNELS` and more than
    `DENSE_SHARE` of the dense layer's weights, and the composite kernel costs little beside the convolution
    (`POSITIONS_PER_MEMBER`); else ``matmul`` for channels first and `LARGE` inputs, ``group`` for others channels last.
    """
    plain = x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64) and x.numel()
    if is_traced(x) or needs_gradient(x, chain.weights) or not plain or torch.is_autocast_enabled("cpu"):
        return "group"
    spec = chain.spec
    height, width = chain.geometry.output_size(x.shape[2:])
    taps = chain.geometry.kernel_size[0] * chain.geometry.kernel_size[1]
    share = sum(weight.numel() for weight in chain.weights) / (spec.in_channels * spec.out_channels * taps)
    later = sum(factor.members_in for factor in spec.factors[1:])
    narrow = max(spec.in_channels, spec.out_channels) <= DENSE_CHANNELS
    if narrow and share > DENSE_SHARE and len(x) * height * width >= POSITIONS_PER_MEMBER * later:
        return "dense"
    return "group" if is_channels_last(x) and x.numel() * x.element_size() < LARGE else "matmul"


def is_traced(x: Tensor) -> bool:
    """Whether operators are being recorded or counted instead of run."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(x) not in (Tensor, nn.Parameter)
        or x.device.type == "meta"
    )


def needs_gradient(x: Tensor, weights: Iterable[Tensor]) -> bool:
    """Whether a result of ``x`` and ``weights`` is to be differentiated."""
    return torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in weights))
