"""IGCV2 networks: depthwise 3x3 convolutions and several sparse 1x1 ones, permuted in between.

Paper: Xie, Wang, Zhang, Lai, Hong, Qi, "IGCV2: Interleaved Structured Sparse Convolutional Neural Networks"
(CVPR 2018), section 4. https://arxiv.org/abs/1804.06202

Differs from the paper: the layer tables were never published. ``igcv2_c416_d20`` is a reconstruction from depth, width,
branch size and the printed 0.65 M parameters (ours: 639,076, or 650,308 with ``widen="depthwise"``); the networks named
``igcv2_s*`` are our own: MobileNetV1's plan with the balanced factorisation of every pointwise convolution.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from convsmith.compression import InterleavedStructuredConv2d, balanced_partition
from convsmith.compression.operators.blocks import ChainBlock
from convsmith.errors import InvalidArgument
from convsmith.models.lean_controls import MOBILENET_V1, scaled
from convsmith.models.staged import StagedNet, configuration, create

__all__ = ["igcv2_cifar", "igcv2_imagenet"]


def igcv2_cifar(
    depth: int = 20,
    channels: int = 416,
    branch: int = 8,
    factors: int = 2,
    widen: str = "pointwise",
    num_classes: int = 100,
    in_chans: int = 3,
    **head: Any,
) -> StagedNet:
    """Build IGCV2*-C<channels>: three stages of (depth - 2) / 3 blocks with C, 2 C and 4 C channels.

    A block is a depthwise 3x3 and ``factors`` 1x1 group convolutions of ``branch`` channels a branch, then one
    normalisation and activation. The chain is strict where the branches multiply to the channels, loose elsewhere.

    Args:
        depth: 3 n + 2.
        channels: C.
        branch: K.
        factors: 1x1 group convolutions in a block.
        widen: which convolution doubles the channels, the first ``"pointwise"`` or the ``"depthwise"``.
        num_classes: classes.
        in_chans: channels of the images.
        **head: ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    if depth < 5 or (depth - 2) % 3:
        below = max(depth - (depth - 2) % 3, 5)
        raise InvalidArgument(
            "three stages of n blocks make 3n + 2 layers",
            argument="depth",
            given=depth,
            hint=f"nearest: {below} or {below + 3}",
        )
    if widen not in ("pointwise", "depthwise"):
        raise InvalidArgument("widen is 'pointwise' or 'depthwise'", given=repr(widen))
    partitions = (1, *(branch,) * factors)
    stages = []
    before = channels
    for number in range(3):
        out, stride = channels * 2**number, 1 if number == 0 else 2
        blocks = []
        for position in range((depth - 2) // 3):
            chain = InterleavedStructuredConv2d(
                partitions,
                3,
                stride if position == 0 else 1,
                channels=before,
                out_channels=out,
                widen_at=1 if widen == "pointwise" else 0,
            )
            blocks.append(ChainBlock(chain, out))
            before = out
        stages.append((nn.Sequential(*blocks), out, stride))
    stem = nn.Sequential(nn.Conv2d(in_chans, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())
    return StagedNet(stem, channels, stages, num_features=before, num_classes=num_classes, in_chans=in_chans, **head)


def igcv2_imagenet(
    width: float = 1.0, factors: int = 2, num_classes: int = 1000, in_chans: int = 3, **head: Any
) -> StagedNet:
    """Build MobileNetV1's plan with every pointwise convolution factored into ``factors`` balanced sparse ones.

    Args:
        width: multiplier of all widths; they become multiples of 16.
        factors: sparse 1x1 convolutions in place of a dense one, strictly complementary.
        num_classes: classes.
        in_chans: channels of the images.
        **head: ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    before = scaled(32, width, 16)
    stem = nn.Sequential(nn.Conv2d(in_chans, before, 3, 2, 1, bias=False), nn.BatchNorm2d(before), nn.ReLU())
    stem_out = before
    stages: list[tuple[nn.Sequential, int, int]] = []
    for channels, repeats, stride in MOBILENET_V1:
        out = scaled(channels, width, 16)
        blocks = []
        for position in range(repeats):
            chain = _balanced_chain(before, out, factors, stride if position == 0 else 1)
            blocks.append(ChainBlock(chain, out))
            before = out
        stages.append((nn.Sequential(*blocks), out, stride))
    settings = {"num_classes": num_classes, "in_chans": in_chans, **head}
    return StagedNet(stem, stem_out, stages, num_features=before, stem_reduction=2, **settings)


def _balanced_chain(in_channels: int, out: int, factors: int, stride: int) -> InterleavedStructuredConv2d:
    """Return depthwise 3x3 and a strict 1x1 chain to ``out`` channels, the larger output digits mixed last."""
    in_sizes, out_sizes = balanced_partition(in_channels, factors), balanced_partition(out, factors)
    return InterleavedStructuredConv2d((1, *in_sizes), 3, stride, out_partitions=(1, *out_sizes))


default_cfgs = generate_default_cfgs(
    {
        "igcv2_c416_d20.untrained": configuration(32, 8, 100),
        "igcv2_small.untrained": configuration(32, 8, 10),
        "igcv2_s100.untrained": configuration(224, 32, 1000),
        "igcv2_s200.untrained": configuration(224, 32, 1000),
    }
)


@register_model
def igcv2_c416_d20(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGCV2*-C416, 20 layers, for CIFAR-100 (a reconstruction): 639,076 parameters."""
    return create(igcv2_cifar, "igcv2_c416_d20", 3, pretrained, **kwargs)


@register_model
def igcv2_small(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGCV2 for 8x8 to 32x32 inputs: 14 layers, 64 to 256 channels, branches of 8, 51,082 parameters."""
    settings = {"depth": 14, "channels": 64, "branch": 8, "num_classes": 10, **kwargs}
    return create(igcv2_cifar, "igcv2_small", 3, pretrained, **settings)


@register_model
def igcv2_s100(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV1's plan at width 1.0 (ours), balanced pairs of sparse 1x1: 1,352,040 parameters."""
    return create(igcv2_imagenet, "igcv2_s100", 5, pretrained, **kwargs)


@register_model
def igcv2_s200(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV1's plan at width 2.0 (ours), balanced pairs of sparse 1x1: 2,888,424 parameters."""
    return create(igcv2_imagenet, "igcv2_s200", 5, pretrained, **{"width": 2.0, **kwargs})
