"""Blocks with normalisation and activation around interleaved convolutions, and their relatives in the same form.

Sun et al., IGCV3: Interleaved Low-Rank Group Convolutions, arXiv 1806.00178, section 3;
Zhao et al., On the Connection of Deep Fusion to Ensembling / Deep Merge-and-Run, arXiv 1611.07718, section 3.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from convsmith.arguments import checked, one_of, spelled
from convsmith.compression.operators.chain_spec import ChainSpec, GroupConvSpec, check_divides, shuffle
from convsmith.compression.operators.interleaved import ChannelOrder, InterleavedGroupConv2d, LinearChain, one_node
from convsmith.errors import InvalidArgument

Maker = Callable[..., nn.Module]


class ChainBlock(nn.Module):
    """A linear chain, then normalisation and activation (IGCV1's and IGCV2's block; nothing in between)."""

    @checked
    def __init__(
        self, chain: nn.Module, channels: int, norm_layer: Maker = nn.BatchNorm2d, act_layer: Maker = nn.ReLU
    ) -> None:
        super().__init__()
        self.chain = chain
        self.norm = norm_layer(channels)
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, channels, H', W']."""
        return self.act(self.norm(self.chain(x)))


class ChainResidual(nn.Module):
    """Two linear chains on a residual branch: ``act(norm(chain(act(norm(chain(x))))) + shortcut(x))``."""

    @checked
    def __init__(
        self,
        first: nn.Module,
        second: nn.Module,
        channels: int,
        shortcut: nn.Module | None = None,
        norm_layer: Maker = nn.BatchNorm2d,
        act_layer: Maker = nn.ReLU,
    ) -> None:
        super().__init__()
        self.chain1, self.norm1, self.act1 = first, norm_layer(channels), act_layer()
        self.chain2, self.norm2, self.act2 = second, norm_layer(channels), act_layer()
        self.shortcut = nn.Identity() if shortcut is None else shortcut
        self.drop_path: nn.Module = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, channels, H', W']."""
        y = self.norm2(self.chain2(self.act1(self.norm1(self.chain1(x)))))
        return self.act2(self.drop_path(y) + self.shortcut(x))


class InvertedInterleavedBlock(nn.Module):
    """IGCV3's block: group 1x1 up, shuffle, depthwise, group 1x1 down; a product of low-rank structured factors.

    Every input reaches every output by ``t C / (G1 G2)`` paths (the loose complementary condition over G1 input and G2
    output super-channels). With ``groups_up = groups_down = 1`` it is MobileNetV2's block (with
    ``expand_activation=True``). Parameters without norm: ``t C C / G1 + k k t C + t C C' / G2``.

    The shuffle moves no wide tensor. Hidden channels are numbered (output super-channel j, input super-channel g,
    path): block (j, g) of the expansion reads input super-channel g, so the expansion is one convolution of G1 G2
    groups on the narrow input repeated G2 times, and the projection reads its channels where they lie.

    Differs from the paper: the hidden channels are numbered otherwise, the function is the same: ``expand.weight[i]``
    is row ``hidden_order()[i]`` of the authors'. Where G1 G2 does not divide the hidden width, the shuffle stays.

    Args:
        in_channels, out_channels: C, C'; the identity is added where they are equal and ``stride`` is 1.
        stride: of the depthwise convolution.
        expansion: t; the hidden width is ``round(t C)`` unless ``hidden_channels`` is given.
        groups_up, groups_down: G1, G2.
        expand_activation: an activation after the expansion (the authors have none).
        permute_out: a shuffle after the last group convolution (the authors have none).
        kernel_size, norm_layer, act_layer: of the depthwise convolution and around it.

    Raises:
        InvalidArgument: unless ``G1 | C``, ``G1 | t C``, ``G2 | t C`` and ``G2 | C'``; names the number and the nearest
            divisors. The paths are equally many for all pairs where ``G1 G2 | t C`` as well.
    """

    __jit_unused_properties__ = ("spec",)  # TorchScript would compile a property that describes the block

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        expansion: float = 6,
        groups_up: int = 2,
        groups_down: int = 2,
        *,
        hidden_channels: int | None = None,
        expand_activation: bool = False,
        permute_out: bool = False,
        kernel_size: int = 3,
        norm_layer: Maker = nn.BatchNorm2d,
        act_layer: Maker = nn.ReLU6,
    ) -> None:
        super().__init__()
        hidden = round(in_channels * expansion) if hidden_channels is None else hidden_channels
        check_divides(groups_up, in_channels, "groups_up (of the input)")
        check_divides(groups_up, hidden, "groups_up (of the expanded channels)")
        check_divides(groups_down, hidden, "groups_down (of the expanded channels)")
        check_divides(groups_down, out_channels, "groups_down (of the output)")
        self.in_channels, self.hidden_channels, self.out_channels = in_channels, hidden, out_channels
        self.groups_up, self.groups_down, self.stride = groups_up, groups_down, stride
        self.has_identity = stride == 1 and in_channels == out_channels
        # with one group on a side the shuffle is no more than a numbering
        needed = groups_up > 1 and groups_down > 1
        self.copies = groups_down if needed and hidden % (groups_up * groups_down) == 0 else 1
        groups = groups_up * self.copies
        self.expand = nn.Conv2d(in_channels * self.copies, hidden, 1, groups=groups, bias=False)
        self.norm1 = norm_layer(hidden)
        self.act1 = act_layer() if expand_activation else nn.Identity()
        shuffled = needed and self.copies == 1
        self.order: nn.Module = ChannelOrder(shuffle(hidden, groups_up)) if shuffled else nn.Identity()
        self.depthwise = nn.Conv2d(hidden, hidden, kernel_size, stride, kernel_size // 2, groups=hidden, bias=False)
        self.norm2 = norm_layer(hidden)
        self.act2 = act_layer()
        self.project = nn.Conv2d(hidden, out_channels, 1, groups=groups_down, bias=False)
        self.norm3 = norm_layer(out_channels)
        # the shuffle xxradon's port calls permute(C' / 2): as many groups as the down convolution has members
        self.order_out: nn.Module = (
            ChannelOrder(shuffle(out_channels, groups_down)) if permute_out and groups_down > 1 else nn.Identity()
        )
        self.drop_path: nn.Module = nn.Identity()

    @torch.jit.unused
    def hidden_order(self) -> Tensor:
        """Return the number the authors give every hidden channel of the expansion, [hidden].

        ``expand.weight = theirs[order]``, the same for ``norm1``; depthwise, ``norm2`` and the projection's columns
        follow their channels: they are numbered (j, path, g) after the authors' shuffle and (j, g, path) here.
        """
        own = torch.arange(self.hidden_channels)
        if self.copies == 1:
            return own
        return own.view(self.groups_up, self.copies, -1).transpose(0, 1).reshape(-1)

    @torch.jit.unused  # type: ignore[prop-decorator]
    @property
    def spec(self) -> ChainSpec:
        """Who reaches whom in the authors' numbering, for `condition` (the block is not linear: paths only)."""
        hidden = self.hidden_channels
        up = GroupConvSpec(self.in_channels, hidden, self.groups_up)
        order = shuffle(hidden, self.groups_up) if self.groups_up > 1 else None
        depthwise = GroupConvSpec(hidden, hidden, hidden, order)
        down = GroupConvSpec(hidden, self.out_channels, self.groups_down)
        final = self.order_out.order if isinstance(self.order_out, ChannelOrder) else None
        return ChainSpec((up, depthwise, down), final)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        wide = x if self.copies == 1 else torch.cat([x] * self.copies, 1)
        y = self.order(self.act1(self.norm1(self.expand(wide))))
        y = self.act2(self.norm2(self.depthwise(y)))
        y = self.order_out(self.norm3(self.project(y)))
        return x + self.drop_path(y) if self.has_identity else y


class DepthwiseSeparableBlock(nn.Module):
    """MobileNetV1's block: depthwise, norm, act, dense 1x1, norm, act.

    Without the inner norm and activation it is the corner ``members=1`` of `InterleavedGroupConv2d` (see
    `xception_block`).
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        kernel_size: int = 3,
        norm_layer: Maker = nn.BatchNorm2d,
        act_layer: Maker = nn.ReLU,
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(
            in_channels, in_channels, kernel_size, stride, kernel_size // 2, groups=in_channels, bias=False
        )
        self.norm1, self.act1 = norm_layer(in_channels), act_layer()
        self.pointwise = nn.Conv2d(in_channels, out_channels, 1, bias=False)
        self.norm2, self.act2 = norm_layer(out_channels), act_layer()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_channels, H, W] to [B, out_channels, H', W']."""
        x = self.act1(self.norm1(self.depthwise(x)))
        return self.act2(self.norm2(self.pointwise(x)))


@checked
def xception_block(in_channels: int, out_channels: int, stride: int = 1, **layers: Any) -> ChainBlock:
    """Return Xception's unit as the extreme interleaved block: one member a partition, one secondary partition.

    Examples:
        >>> xception_block(8, 16)(torch.zeros(1, 8, 6, 6)).shape
        torch.Size([1, 16, 6, 6])
    """
    chain: LinearChain = InterleavedGroupConv2d(in_channels, 1, 3, stride, out_primary=out_channels)
    return ChainBlock(chain, out_channels, **layers)


class MergeAndRunBlock(nn.Module):
    """Two residual streams that run apart and merge: ``y_i = act(H_i(x_i) + (s_1(x_1) + s_2(x_2)) / 2)``.

    The map on the stacked streams, ``M = [[I, I], [I, I]] / 2``, is idempotent, so the linear path through any number
    of blocks is one hop (section 3.2). The streams are stacked along the channels, [B, 2 C, H, W], and both branches
    run as convolutions of two groups. A pair of tensors is taken too and a pair is then returned.

    Args:
        in_channels, out_channels: of one stream.
        stride: of the first 3x3 (of the middle one in a bottleneck).
        bottleneck: inner width of a 1x1, 3x3, 1x1 branch; ``None``: two 3x3.
        shortcut: ``"conv"`` (strided 1x1 and norm before averaging), or ``"none"``: a block that changes the shape has
            no shortcut at all, as in the authors' ImageNet network.
        merge: ``"average"``; ``"sum"``: the last block, ``act(mean + H_1 + H_2)`` [B, C', H, W].
    """

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        stride: int = 1,
        *,
        bottleneck: int | None = None,
        shortcut: str = "conv",
        merge: str = "average",
        norm_layer: Maker = nn.BatchNorm2d,
        act_layer: Maker = nn.ReLU,
    ) -> None:
        super().__init__()
        out = in_channels if out_channels is None else out_channels
        one_of("shortcut", shortcut, ("conv", "none"))
        one_of("merge", merge, ("average", "sum"))
        self.in_channels, self.out_channels, self.merge = in_channels, out, merge
        shapes = [(in_channels, out, 3, stride), (out, out, 3, 1)]
        if bottleneck is not None:
            shapes = [(in_channels, bottleneck, 1, 1), (bottleneck, bottleneck, 3, stride), (bottleneck, out, 1, 1)]
        layers: list[nn.Module] = []
        for before, after, side, step in shapes:
            layers += [_two_streams(before, after, side, step), norm_layer(2 * after), act_layer()]
        self.branches = nn.Sequential(*layers[:-1])
        self.shortcut: nn.Module | None = nn.Identity()
        if stride != 1 or in_channels != out:
            self.shortcut = None
            if shortcut == "conv":
                self.shortcut = nn.Sequential(_two_streams(in_channels, out, 1, stride), norm_layer(2 * out))
        self.act = act_layer()

    def forward(self, x: Tensor | tuple[Tensor, Tensor]) -> Any:
        """Map stacked streams [B, 2 C, H, W] to [B, 2 C', H', W'], or to [B, C', H', W'] with ``merge="sum"``."""
        if isinstance(x, fx.Proxy):
            return one_node(self, x)
        if isinstance(x, tuple):
            y = self(torch.cat(x, 1))
            return y if self.merge == "sum" else y.chunk(2, 1)
        if not isinstance(x, Tensor) or x.dim() != 4 or x.shape[1] != 2 * self.in_channels:
            raise InvalidArgument(
                "two streams stand stacked along the channels",
                argument=f"[B, {2 * self.in_channels}, H, W]",
                given=spelled(x),
            )
        y = self.branches(x).unflatten(1, (2, self.out_channels))
        if self.merge == "sum":
            y = y.sum(1, keepdim=True)
        if self.shortcut is not None:
            y = y + self.shortcut(x).unflatten(1, (2, self.out_channels)).mean(1, keepdim=True)
        return self.act(y.flatten(1, 2))


class InceptionLikeBlock(nn.Module):
    """Merge-and-run's half, one stream with two parallel branches: ``y = act(s(x) + H_1(x) + H_2(x))``."""

    @checked
    def __init__(
        self,
        in_channels: int,
        out_channels: int | None = None,
        stride: int = 1,
        *,
        norm_layer: Maker = nn.BatchNorm2d,
        act_layer: Maker = nn.ReLU,
    ) -> None:
        super().__init__()
        out = in_channels if out_channels is None else out_channels
        self.branch1 = _branch(in_channels, out, stride, norm_layer, act_layer)
        self.branch2 = _branch(in_channels, out, stride, norm_layer, act_layer)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out:
            self.shortcut = nn.Sequential(nn.Conv2d(in_channels, out, 1, stride, bias=False), norm_layer(out))
        self.act = act_layer()

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, C, H, W] to [B, C', H', W']."""
        return self.act(self.shortcut(x) + self.branch1(x) + self.branch2(x))


def _branch(in_channels: int, out: int, stride: int, norm_layer: Maker, act_layer: Maker) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out, 3, stride, 1, bias=False),
        norm_layer(out),
        act_layer(),
        nn.Conv2d(out, out, 3, 1, 1, bias=False),
        norm_layer(out),
    )


def _two_streams(in_channels: int, out_channels: int, side: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(2 * in_channels, 2 * out_channels, side, stride, side // 2, groups=2, bias=False)
