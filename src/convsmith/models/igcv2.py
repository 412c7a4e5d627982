"""IGCV2 networks: depthwise 3x3 convolutions and several sparse 1x1 ones, permuted in between.

Paper: Xie, Wang, Zhang, Lai, Hong, Qi, "IGCV2: Interleaved Structured Sparse Convolutional Neural Networks"
(CVPR 2018), section 4. https://arxiv.org/abs/1804.06202

Differs from the paper: the layer tables were never published. ``igcv2_c416_d20`` is a reconstruction from depth, width,
branch size and the printed 0.65 M parameters (ours: 639,076, or 650,308 with ``widen="depthwise"``); the networks named
``igcv2_s*`` are our own: MobileNetV1's plan with the balanced factorisation of every pointwise convolution.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from convsmith.arguments import one_of
from convsmith.compression import InterleavedStructuredConv2d, balanced_partition
from convsmith.compression.operators.blocks import ChainBlock
from convsmith.models.lean_controls import MOBILENET_V1, scaled
from convsmith.models.published import configuration, family
from convsmith.models.staged import StagedNet, check_depth, conv_stem, doubling, stack

__all__ = ["igcv2_cifar", "igcv2_imagenet"]


def igcv2_cifar(
    depth: int = 20,
    channels: int = 416,
    branch: int = 8,
    factors: int = 2,
    widen: str = "pointwise",
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
        **head: ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    check_depth(depth, "an IGCV2", 3, 5)
    one_of("widen", widen, ("pointwise", "depthwise"))
    partitions = (1, *(branch,) * factors)

    def block(before: int, out: int, stride: int) -> nn.Module:
        at = 1 if widen == "pointwise" else 0
        chain = InterleavedStructuredConv2d(partitions, 3, stride, channels=before, out_channels=out, widen_at=at)
        return ChainBlock(chain, out)

    stages = stack(block, channels, doubling(channels, ((depth - 2) // 3,) * 3))
    return StagedNet(conv_stem(channels), channels, stages, **{"num_classes": 100, **head})


def igcv2_imagenet(width: float = 1.0, factors: int = 2, **head: Any) -> StagedNet:
    """Build MobileNetV1's plan with every pointwise convolution factored into ``factors`` balanced sparse ones.

    Args:
        width: multiplier of all widths; they become multiples of 16.
        factors: sparse 1x1 convolutions in place of a dense one, strictly complementary.
        **head: ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """

    def block(before: int, out: int, stride: int) -> nn.Module:  # the larger output digits are mixed last
        in_sizes, out_sizes = balanced_partition(before, factors), balanced_partition(out, factors)
        chain = InterleavedStructuredConv2d((1, *in_sizes), 3, stride, out_partitions=(1, *out_sizes))
        return ChainBlock(chain, out)

    first = scaled(32, width, 16)
    stages = stack(block, first, [(scaled(c, width, 16), n, stride) for c, n, stride in MOBILENET_V1])
    return StagedNet(conv_stem(first, 3, 2), first, stages, **{"num_classes": 1000, "stem_reduction": 2, **head})


_cifar100 = family(__name__, igcv2_cifar, configuration(32, 8, 100), stages=3)
_cifar100("igcv2_c416_d20", "IGCV2*-C416, 20 layers, for CIFAR-100 (a reconstruction): 639,076 parameters.")
_small = family(__name__, igcv2_cifar, configuration(32, 8, 10), stages=3)
_small(
    "igcv2_small",
    "IGCV2 for 8x8 to 32x32 inputs: 14 layers, 64 to 256 channels, branches of 8, 51,082 parameters.",
    depth=14,
    channels=64,
    branch=8,
)
_imagenet = family(__name__, igcv2_imagenet, configuration(224, 32, 1000), stages=5)
_imagenet("igcv2_s100", "MobileNetV1's plan at width 1.0 (ours), balanced pairs of sparse 1x1: 1,352,040 parameters.")
_imagenet(
    "igcv2_s200",
    "MobileNetV1's plan at width 2.0 (ours), balanced pairs of sparse 1x1: 2,888,424 parameters.",
    width=2.0,
)
