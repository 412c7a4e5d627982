"""Controls beside the interleaved networks: MobileNetV1 and a network of Xception units, in the same frame.

Howard et al., "MobileNets" (2017), table 1, https://arxiv.org/abs/1704.04861; Chollet, "Xception" (CVPR 2017),
https://arxiv.org/abs/1610.02357. An Xception unit is the extreme interleaved group convolution: M = 1 member a
partition (IGCV1, section 4).

Differs from the papers: `xception_igc_net` is the plain three-stage plan of the IGCV1 experiments, not Xception-71.
"""

from __future__ import annotations

from typing import Any

from timm.models import generate_default_cfgs, register_model
from torch import nn

from convsmith.compression.operators.blocks import DepthwiseSeparableBlock, xception_block
from convsmith.errors import InvalidArgument
from convsmith.models.staged import StagedNet, configuration, create

__all__ = ["MOBILENET_V1", "mobilenet_v1_net", "scaled", "xception_igc_net"]

#: (channels, blocks, stride of the first) of every stage
MOBILENET_V1: tuple[tuple[int, int, int], ...] = ((64, 1, 1), (128, 2, 2), (256, 2, 2), (512, 6, 2), (1024, 2, 2))


def scaled(channels: int, width: float, multiple: int = 8) -> int:
    """Return ``channels * width`` rounded to a multiple, never below it."""
    if width <= 0:
        raise InvalidArgument("a width multiplier is positive", argument="width", given=width)
    return max(multiple, int(channels * width + multiple / 2) // multiple * multiple)


def mobilenet_v1_net(
    width: float = 1.0,
    plan: tuple[tuple[int, int, int], ...] = MOBILENET_V1,
    stem_stride: int = 2,
    num_classes: int = 1000,
    in_chans: int = 3,
    **head: Any,
) -> StagedNet:
    """Build MobileNetV1: a 3x3 stem and depthwise separable blocks.

    Args:
        width: multiplier of all widths.
        plan: (channels, blocks, stride of the first) of every stage.
        stem_stride: 2 for large images, 1 for small ones.
        num_classes: classes.
        in_chans: channels of the images.
        **head: ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    before = scaled(32, width)
    stem = nn.Sequential(nn.Conv2d(in_chans, before, 3, stem_stride, 1, bias=False), nn.BatchNorm2d(before), nn.ReLU())
    stem_out = before
    stages: list[tuple[nn.Sequential, int, int]] = []
    for channels, repeats, stride in plan:
        out = scaled(channels, width)
        blocks = []
        for position in range(repeats):
            blocks.append(DepthwiseSeparableBlock(before, out, stride if position == 0 else 1))
            before = out
        stages.append((nn.Sequential(*blocks), out, stride))
    settings = {"num_classes": num_classes, "in_chans": in_chans, **head}
    return StagedNet(stem, stem_out, stages, num_features=before, stem_reduction=stem_stride, **settings)


def xception_igc_net(
    depth: int = 20, width: int = 35, num_classes: int = 10, in_chans: int = 3, **head: Any
) -> StagedNet:
    """Build three stages of Xception units with C, 2 C and 4 C channels, norm and activation once per unit.

    Args:
        depth: 3 n + 2.
        width: C.
        num_classes: classes.
        in_chans: channels of the images.
        **head: ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    if depth < 5 or (depth - 2) % 3:
        below = max(depth - (depth - 2) % 3, 5)
        hint = f"nearest: {below} or {below + 3}"
        raise InvalidArgument("three stages of n units make 3n + 2 layers", argument="depth", given=depth, hint=hint)
    stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    before = width
    stages = []
    for number in range(3):
        out, stride = width * 2**number, 1 if number == 0 else 2
        blocks = []
        for position in range((depth - 2) // 3):
            blocks.append(xception_block(before, out, stride if position == 0 else 1))
            before = out
        stages.append((nn.Sequential(*blocks), out, stride))
    return StagedNet(stem, width, stages, num_features=before, num_classes=num_classes, in_chans=in_chans, **head)


default_cfgs = generate_default_cfgs(
    {
        **{f"cs_mobilenetv1_{w}.untrained": configuration(224, 32, 1000) for w in ("100", "075", "050", "025")},
        "cs_mobilenetv1_small.untrained": configuration(32, 8, 10),
        "xception_igc_d20.untrained": configuration(32, 8, 10),
        "xception_igc_small.untrained": configuration(32, 8, 10),
    }
)


@register_model
def cs_mobilenetv1_100(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV1 at width 1.0: 4,231,976 parameters, 568.7 M MACs."""
    return create(mobilenet_v1_net, "cs_mobilenetv1_100", 5, pretrained, **kwargs)


@register_model
def cs_mobilenetv1_075(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV1 at width 0.75: 2,585,560 parameters, 325.4 M MACs."""
    return create(mobilenet_v1_net, "cs_mobilenetv1_075", 5, pretrained, **{"width": 0.75, **kwargs})


@register_model
def cs_mobilenetv1_050(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV1 at width 0.5: 1,331,592 parameters, 149.5 M MACs."""
    return create(mobilenet_v1_net, "cs_mobilenetv1_050", 5, pretrained, **{"width": 0.5, **kwargs})


@register_model
def cs_mobilenetv1_025(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV1 at width 0.25: 470,072 parameters, 41.0 M MACs."""
    return create(mobilenet_v1_net, "cs_mobilenetv1_025", 5, pretrained, **{"width": 0.25, **kwargs})


@register_model
def cs_mobilenetv1_small(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """MobileNetV1's blocks for 8x8 to 32x32 inputs: ten blocks of 32 to 128 channels, 69,098 parameters."""
    plan = ((32, 3, 1), (64, 4, 2), (128, 3, 2))
    settings = {"plan": plan, "stem_stride": 1, "num_classes": 10, **kwargs}
    return create(mobilenet_v1_net, "cs_mobilenetv1_small", 3, pretrained, **settings)


@register_model
def xception_igc_d20(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """Xception units in the plain 20-layer plan for CIFAR, 35 channels at first: 159,750 parameters."""
    return create(xception_igc_net, "xception_igc_d20", 3, pretrained, **kwargs)


@register_model
def xception_igc_small(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """Xception units for 8x8 to 32x32 inputs: 14 layers, 40 channels at first, 132,410 parameters."""
    return create(xception_igc_net, "xception_igc_small", 3, pretrained, **{"depth": 14, "width": 40, **kwargs})
