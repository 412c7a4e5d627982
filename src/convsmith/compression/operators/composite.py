"""The dense kernel a stack of linear layers equals, and how dense and how full of rank it is."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked
from convsmith.compression.operators.backends import block_diagonal, convolution_of
from convsmith.compression.operators.chain_spec import shuffle
from convsmith.compression.operators.geometry import ChainGeometry
from convsmith.compression.operators.interleaved import ChannelOrder, InterleavedGroupConv2d, LinearChain
from convsmith.errors import InvalidArgument


@dataclass(frozen=True)
class KernelStructure:
    """What a composite kernel looks like.

    ``density``: share of channel pairs with a non-zero kernel; ``rank`` of the flattened kernel [out, in k k] and the
    most it could be; ``weights`` and ``dense_weights``: those of the stack and those of the kernel; ``block_rank``: for
    an interleaved pair the largest rank of a sub-block (one by construction), else ``None``.
    """

    density: float
    rank: int
    full_rank: int
    weights: int
    dense_weights: int
    block_rank: int | None


@checked
def kernel_structure(module: nn.Module) -> KernelStructure:
    """Report density and rank of the composite of a stack of linear layers (see `composite_kernel`).

    Examples:
        >>> structure = kernel_structure(nn.Conv2d(8, 8, 3, groups=2, bias=False))
    """
    with torch.no_grad():
        kernel = composite_kernel(copy.deepcopy(module).double())  # in float32 rounding would look like rank
    flat = kernel.flatten(1)
    block_rank = None
    if isinstance(module, InterleavedGroupConv2d) and module.spec.is_view:
        members_out = module.spec.factors[1].groups
        blocks = kernel.view(-1, members_out, module.primary, module.members * kernel[0, 0].numel())
        block_rank = int(torch.linalg.matrix_rank(blocks.permute(1, 2, 0, 3)).max())
    return KernelStructure(
        density=float((kernel.flatten(2) != 0).any(-1).double().mean()),
        rank=int(torch.linalg.matrix_rank(flat)),
        full_rank=min(flat.shape),
        weights=sum(parameter.numel() for parameter in module.parameters()),
        dense_weights=kernel.numel(),
        block_rank=block_rank,
    )


@checked
def composite_kernel(module: nn.Module) -> Tensor:
    """Return the dense kernel [out, in, k, k] that a stack of linear layers equals.

    ``F.conv2d`` with it, at the stride, padding and dilation of the stack's spatial layer, gives the same output.
    Understood are our chains, ``nn.Conv2d`` without bias, channel permutations (ours and ``nn.ChannelShuffle``),
    ``nn.Identity`` and ``nn.Sequential`` of these.

    Raises:
        InvalidArgument: for a bias, a non-linear module, or a second spatial layer (between two padded ones the
            border is cut, so that no single kernel equals them).

    Examples:
        >>> composite_kernel(nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 4, 1, bias=False))).shape
        torch.Size([4, 8, 3, 3])
    """
    layers = list(_linear_layers(module))
    if not layers:
        raise InvalidArgument("a stack has at least one linear layer", given=type(module).__name__)
    spatial = [layer for layer in layers if _is_spatial(layer)]
    if len(spatial) > 1:
        raise InvalidArgument(
            "one kernel can stand for at most one spatial layer",
            given=f"{len(spatial)} layers larger than 1x1 or strided",
        )
    kernel: Tensor | None = None
    for layer in layers:
        if isinstance(layer, LinearChain):
            step = layer.composite()
        elif isinstance(layer, nn.Conv2d):
            step = block_diagonal(layer.weight, layer.groups)
        else:
            step = _permutation_kernel(layer, kernel)
        kernel = step if kernel is None else _then(kernel, step)
    assert kernel is not None
    return kernel


@checked
def dense_convolution(module: nn.Module) -> nn.Conv2d:
    """Return a ``nn.Conv2d`` that computes what a stack of linear layers computes (see `composite_kernel`).

    Examples:
        >>> stack = nn.Sequential(nn.Conv2d(8, 8, 3, bias=False), nn.Conv2d(8, 4, 1, bias=False))
        >>> dense_convolution(stack).out_channels
        4
    """
    with torch.no_grad():
        kernel = composite_kernel(module).contiguous()
    geometry: Any = ChainGeometry()
    for layer in _linear_layers(module):
        if _is_spatial(layer):
            geometry = layer.geometry if isinstance(layer, LinearChain) else layer
    return convolution_of(kernel, geometry).train(module.training)


def _linear_layers(module: nn.Module) -> Any:
    """Yield the linear layers of a stack in order, or raise for the first thing that is none."""
    if isinstance(module, nn.Sequential):
        for child in module:
            yield from _linear_layers(child)
    elif isinstance(module, nn.Identity):
        return
    elif isinstance(module, nn.Conv2d):
        if module.bias is not None:
            raise InvalidArgument(
                "a kernel cannot hold a bias", given=repr(module), hint="build the layers with bias=False"
            )
        if module.padding_mode != "zeros":
            raise InvalidArgument("padding is with zeros", given=module.padding_mode)
        yield module
    elif isinstance(module, LinearChain | ChannelOrder | nn.ChannelShuffle):
        yield module
    else:
        raise InvalidArgument(
            "every layer of the stack is linear and without bias",
            given=type(module).__name__,
            hint="take the part between two normalisations or activations; fold batch normalisation first",
        )


def _is_spatial(layer: nn.Module) -> bool:
    if isinstance(layer, LinearChain):
        return not layer.geometry.is_pointwise
    if isinstance(layer, nn.Conv2d):
        padded = not isinstance(layer.padding, str) and any(layer.padding)  # "same" adds nothing to a 1x1
        return padded or any(n != 1 for n in (*layer.kernel_size, *layer.stride))
    return False


def _permutation_kernel(layer: nn.Module, before: Tensor | None) -> Tensor:
    if isinstance(layer, ChannelOrder):
        index = layer.order.index()
    else:
        if before is None:
            raise InvalidArgument(
                "a stack starts with a layer that knows its channels", given=type(layer).__name__, hint="put it later"
            )
        index = shuffle(len(before), int(layer.groups)).index()  # type: ignore[arg-type]
    eye = torch.eye(len(index)) if before is None else torch.eye(len(index), dtype=before.dtype, device=before.device)
    return eye[index.to(eye.device)][:, :, None, None]


def _then(kernel: Tensor, step: Tensor) -> Tensor:
    """Compose two kernels of which at most one is larger than 1x1: first ``kernel``, then ``step``."""
    if step.shape[1] != kernel.shape[0]:
        raise InvalidArgument(
            "each layer takes the channels the one before gives", given=f"{kernel.shape[0]} into {step.shape[1]}"
        )
    return torch.einsum("omhw,miyx->oihwyx", step, kernel).reshape(
        step.shape[0], kernel.shape[1], step.shape[2] * kernel.shape[2], step.shape[3] * kernel.shape[3]
    )
