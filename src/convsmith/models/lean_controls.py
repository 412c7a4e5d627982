"""Controls beside the interleaved networks: MobileNetV1 and a network of Xception units, in the same frame.

Howard et al., "MobileNets" (2017), table 1, https://arxiv.org/abs/1704.04861; Chollet, "Xception" (CVPR 2017),
https://arxiv.org/abs/1610.02357. An Xception unit is the extreme interleaved group convolution: M = 1 member a
partition (IGCV1, section 4).

Differs from the papers: `xception_igc_net` is the plain three-stage plan of the IGCV1 experiments, not Xception-71.
"""

from __future__ import annotations

from typing import Any

from convsmith.arguments import number
from convsmith.compression.operators.blocks import DepthwiseSeparableBlock, xception_block
from convsmith.models.published import configuration, family
from convsmith.models.staged import StagedNet, check_depth, conv_stem, doubling, stack

__all__ = ["MOBILENET_V1", "mobilenet_v1_net", "scaled", "xception_igc_net"]

#: (channels, blocks, stride of the first) of every stage
MOBILENET_V1: tuple[tuple[int, int, int], ...] = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))


def scaled(channels: int, width: float, multiple: int = 8) -> int:
    """Return ``channels * width`` rounded to a multiple, never below it."""
    number("width", width, above=0)
    return max(multiple, int(channels * width + multiple / 2) // multiple * multiple)


def mobilenet_v1_net(
    width: float = 1.0,
    plan: tuple[tuple[int, int, int], ...] = MOBILENET_V1,
    stem_stride: int = 2,
    **head: Any,
) -> StagedNet:
    """Build MobileNetV1: a 3x3 stem and depthwise separable blocks.

    Args:
        width: multiplier of all widths.
        plan: (channels, blocks, stride of the first) of every stage.
        stem_stride: 2 for large images, 1 for small ones.
        **head: ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    first = scaled(32, width)
    stages = stack(DepthwiseSeparableBlock, first, [(scaled(c, width), n, stride) for c, n, stride in plan])
    settings = {"num_classes": 1000, "stem_reduction": stem_stride, **head}
    return StagedNet(conv_stem(first, 3, stem_stride), first, stages, **settings)


def xception_igc_net(depth: int = 20, width: int = 35, **head: Any) -> StagedNet:
    """Build three stages of Xception units with C, 2 C and 4 C channels, norm and activation once per unit.

    Args:
        depth: 3 n + 2.
        width: C.
        **head: ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    check_depth(depth, "a plain", 3, 5)
    stages = stack(xception_block, width, doubling(width, ((depth - 2) // 3,) * 3))
    return StagedNet(conv_stem(width), width, stages, **head)


_imagenet = family(__name__, mobilenet_v1_net, configuration(224, 32, 1000), stages=5)
_imagenet("cs_mobilenetv1_100", "MobileNetV1 at width 1.0: 4,231,976 parameters, 568.7 M MACs.")
_imagenet("cs_mobilenetv1_075", "MobileNetV1 at width 0.75: 2,585,560 parameters, 325.4 M MACs.", width=0.75)
_imagenet("cs_mobilenetv1_050", "MobileNetV1 at width 0.5: 1,331,592 parameters, 149.5 M MACs.", width=0.5)
_imagenet("cs_mobilenetv1_025", "MobileNetV1 at width 0.25: 470,072 parameters, 41.0 M MACs.", width=0.25)
_small = family(__name__, mobilenet_v1_net, configuration(32, 8, 10), stages=3)
_small(
    "cs_mobilenetv1_small",
    "MobileNetV1's blocks for 8x8 to 32x32 inputs: ten blocks of 32 to 128 channels, 69,098 parameters.",
    plan=((32, 3, 1), (64, 4, 2), (128, 3, 2)),
    stem_stride=1,
)
_xception = family(__name__, xception_igc_net, configuration(32, 8, 10), stages=3)
_xception(
    "xception_igc_d20", "Xception units in the plain 20-layer plan for CIFAR, 35 channels at first: 159,750 parameters."
)
_xception(
    "xception_igc_small",
    "Xception units for 8x8 to 32x32 inputs: 14 layers, 40 channels at first, 132,410 parameters.",
    depth=14,
    width=40,
)
