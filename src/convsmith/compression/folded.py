"""What a folded network holds in place of chains and of IGCV3's block, and which 1x1 groups are written out dense.

The rules follow from shapes alone and were measured in ONNX Runtime, ``torch.compile`` and eager mode
(docs/compression/folded.md): both keep activations in blocks of 8 or 16 channels, and a group that does not fill such a
block is taken out of it and put back, which costs more than the multiplications it saves.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from convsmith.compression.operators.backends import dense_kernel
from convsmith.compression.operators.blocks import InvertedInterleavedBlock
from convsmith.compression.operators.chain_spec import ChainSpec, GroupConvSpec
from convsmith.compression.operators.interleaved import ChannelOrder, LinearChain
from convsmith.errors import InvalidArgument

#: channels of one block of the runtimes' layouts (AVX-512; 8 with AVX2, of which 16 is a multiple)
BLOCK = 16
#: most groups a 1x1 convolution may have to be written out as a dense one: it then costs that many times the MACs
DENSE_GROUPS = 4
#: most output channels at which a chain's later factors are merged into one dense 1x1
MERGED_CHANNELS = 256


class FoldedInvertedBlock(nn.Module):
    """`InvertedInterleavedBlock` as three convolutions and their activations; ``copies`` of the input side by side."""

    def __init__(self, block: InvertedInterleavedBlock, expand: nn.Conv2d, depthwise: nn.Conv2d, project: nn.Conv2d):
        super().__init__()
        self.copies = expand.in_channels // block.in_channels
        self.has_identity = block.has_identity
        self.expand, self.act1 = expand, block.act1
        self.depthwise, self.act2 = depthwise, block.act2
        self.project = project

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        wide = x if self.copies == 1 else torch.cat([x] * self.copies, 1)
        y = self.project(self.act2(self.depthwise(self.act1(self.expand(wide)))))
        return x + y if self.has_identity else y


class FoldedChain(nn.Module):
    """A long chain whose norm went into the last factor's weights and a shift; it runs as chains do."""

    def __init__(self, chain: LinearChain, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.chain = copy.deepcopy(chain)  # it may stand in a second place, before another norm
        self.shift = nn.Parameter(shift.detach().clone(), requires_grad=False)
        order = chain.spec.final_order
        scale = scale if order is None else scale[order.inverse().index().to(scale.device)]
        with torch.no_grad():
            self.chain.weights[-1].mul_(scale.view(-1, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        return self.chain(x) + self.shift.view(1, -1, 1, 1)


def scale_and_shift(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    """Return what an evaluation-mode batch norm does, ``y = scale x + shift``, per channel."""
    if norm.running_mean is None or norm.running_var is None:
        raise InvalidArgument("a norm without running statistics cannot be folded", given=repr(norm))
    scale = torch.rsqrt(norm.running_var + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -norm.running_mean * scale
    return scale, shift if norm.bias is None else shift + norm.bias


def fills_blocks(convolution: nn.Conv2d) -> bool:
    """Whether every group of a convolution reads and writes whole blocks of channels."""
    members = convolution.in_channels // convolution.groups, convolution.out_channels // convolution.groups
    return members[0] % BLOCK == 0 and members[1] % BLOCK == 0


def pointwise_for_runtime(convolution: nn.Conv2d) -> nn.Conv2d:
    """Return a dense twin of a 1x1 convolution of 2 to `DENSE_GROUPS` groups that do not fill blocks; else itself."""
    few = 1 < convolution.groups <= DENSE_GROUPS and convolution.kernel_size == (1, 1)
    return convolution if not few or fills_blocks(convolution) else _dense(convolution)


def _dense(convolution: nn.Conv2d, weight: Tensor | None = None) -> nn.Conv2d:
    """Return the convolution without groups, with ``weight`` or its own written out."""
    if weight is None:
        part = GroupConvSpec(convolution.in_channels, convolution.out_channels, convolution.groups)
        weight = dense_kernel([convolution.weight.detach()], ChainSpec((part,)))
    made = copy.deepcopy(convolution)
    made.groups, made.in_channels = 1, weight.shape[1]
    made.weight = nn.Parameter(weight.contiguous(), requires_grad=False)
    return made


def folded_inverted_block(block: InvertedInterleavedBlock) -> nn.Module:
    """Return IGCV3's block as three convolutions, or the block where its norms are not batch norms.

    The expansion reads the repeated input where its groups fill blocks; else it is dense on the input itself. The
    projection is grouped or dense by the same rule. Where both would be dense but the G1 groups of the expansion fill
    blocks in the authors' numbering (G1 groups instead of G1 G2), the hidden channels are numbered so.
    """
    norms = [n for n in (block.norm1, block.norm2, block.norm3) if isinstance(n, nn.BatchNorm2d)]
    if len(norms) < 3 or any(type(n) is not nn.BatchNorm2d or n.running_mean is None for n in norms):
        return block
    expand, depthwise, project = (
        fuse_conv_bn_eval(layer, norm)
        for layer, norm in zip((block.expand, block.depthwise, block.project), norms, strict=True)
    )
    down = pointwise_for_runtime(project)
    if isinstance(block.order, ChannelOrder):  # the shuffle stayed: the dense projection takes it over
        back = block.order.order.inverse().index()
        depthwise, down = _reordered(depthwise, back), _dense(project)
        down = _dense(down, down.weight[:, back])
        expand = pointwise_for_runtime(expand)
    elif block.copies > 1 and not fills_blocks(expand):
        members = block.hidden_channels // block.groups_up
        if down.groups == 1 and members % BLOCK == 0 and block.in_channels // block.groups_up % BLOCK == 0:
            back = block.hidden_order().argsort()
            expand, depthwise = _reordered(expand, back), _reordered(depthwise, back)
            expand.groups, expand.in_channels = block.groups_up, block.in_channels
            down = _dense(down, down.weight[:, back])
        elif block.groups_up <= DENSE_GROUPS:
            copies = _dense(expand).weight.unflatten(1, (block.copies, block.in_channels))
            expand = _dense(expand, copies.sum(1))
    elif block.copies == 1:
        expand = pointwise_for_runtime(expand)
    if isinstance(block.order_out, ChannelOrder):
        down = _reordered(_dense(project) if down.groups > 1 else down, block.order_out.order.index())
    return FoldedInvertedBlock(block, expand, depthwise, down)


def _reordered(convolution: nn.Conv2d, order: Tensor) -> nn.Conv2d:
    """Return the convolution with its outputs in another order (a depthwise one: its channels)."""
    made = copy.deepcopy(convolution)
    assert made.bias is not None
    order = order.to(made.weight.device)
    made.weight = nn.Parameter(made.weight[order].contiguous(), requires_grad=False)
    made.bias = nn.Parameter(made.bias[order].contiguous(), requires_grad=False)
    return made


def folded_chain(chain: LinearChain, norm: nn.BatchNorm2d | None) -> nn.Module:
    """Return a chain and the norm behind it as a grouped convolution and one dense 1x1, or as they are if too wide.

    The dense 1x1 absorbs all factors after the first and all permutations; where it has more than `MERGED_CHANNELS`
    outputs it would cost more than the data movement it saves. An activation inside the norm is not part of it.
    """
    spec = chain.spec
    scale, shift = (None, None) if norm is None else scale_and_shift(norm)
    if spec.out_channels > MERGED_CHANNELS or len(spec.factors) < 2:
        return chain if scale is None or shift is None else FoldedChain(chain, scale, shift)
    first, g = spec.factors[0], chain.geometry
    like = {"device": chain.weights[0].device, "dtype": chain.weights[0].dtype}
    sizes = g.kernel_size, g.stride, g.padding, g.dilation, first.groups
    start = nn.Conv2d(first.in_channels, first.out_channels, *sizes, bias=False, **like)
    kernel = dense_kernel([w.detach() for w in chain.weights[1:]], ChainSpec(spec.factors[1:], spec.final_order))
    mix = nn.Conv2d(first.out_channels, spec.out_channels, 1, bias=shift is not None, **like)
    with torch.no_grad():
        start.weight.copy_(chain.weights[0])
        mix.weight.copy_(kernel if scale is None else kernel * scale.view(-1, 1, 1, 1))
        if shift is not None and mix.bias is not None:
            mix.bias.copy_(shift)
    layers: list[nn.Module] = [pointwise_for_runtime(start), mix]
    if first.order is not None:
        layers.insert(0, ChannelOrder(first.order))
    return nn.Sequential(*layers).requires_grad_(False)
