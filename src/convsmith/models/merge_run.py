"""Deep merge-and-run networks: two residual streams that exchange their mean before every block.

Paper: Zhao, Wang, Li, Tu, Zeng, "On the Connection of Deep Fusion to Ensembling" / "Deep Convolutional Neural Networks
with Merge-and-Run Mappings" (IJCAI 2018), section 3. https://arxiv.org/abs/1611.07718

Differs from the paper: nothing in structure and counts; the two streams stand stacked along the channels and both
branches run as convolutions of two groups.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import generate_default_cfgs, register_model
from torch import Tensor, nn

from convsmith.compression.operators.blocks import MergeAndRunBlock
from convsmith.errors import InvalidArgument
from convsmith.models.staged import StagedNet, configuration, create

__all__ = ["TwoCopies", "dmrnet", "dmrnet_imagenet"]


class TwoCopies(nn.Module):
    """Start two equal streams, [B, C, H, W] -> [B, 2 C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, x), 1)


def dmrnet(
    depth: int = 56, width: int = 1, base: int = 16, num_classes: int = 10, in_chans: int = 3, **head: Any
) -> StagedNet:
    """Build a merge-and-run network for small images: stages of 1, 2 and 4 times ``base * width`` channels a stream.

    Args:
        depth: 6 n + 2; n blocks a stage, each with two branches of two 3x3 convolutions.
        width: multiplier of all widths.
        base: channels of the first stage before the multiplier.
        num_classes: classes.
        in_chans: channels of the images.
        **head: ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    if depth < 8 or (depth - 2) % 6:
        below = max(depth - (depth - 2) % 6, 8)
        hint = f"nearest: {below} or {below + 6}"
        raise InvalidArgument("a merge-and-run network has 6n + 2 layers", argument="depth", given=depth, hint=hint)
    before = base * width
    stem = nn.Sequential(
        nn.Conv2d(in_chans, before, 3, 1, 1, bias=False), nn.BatchNorm2d(before), nn.ReLU(), TwoCopies()
    )
    stages = []
    for number in range(3):
        out, stride = base * width * 2**number, 1 if number == 0 else 2
        blocks = []
        for position in range((depth - 2) // 6):
            is_last = number == 2 and position == (depth - 2) // 6 - 1
            merge = "sum" if is_last else "average"
            blocks.append(MergeAndRunBlock(before, out, stride if position == 0 else 1, merge=merge))
            before = out
        stages.append((nn.Sequential(*blocks), out if number == 2 else 2 * out, stride))
    return StagedNet(
        stem, 2 * base * width, stages, num_features=before, num_classes=num_classes, in_chans=in_chans, **head
    )


def dmrnet_imagenet(
    blocks: tuple[int, ...] = (1, 2, 11, 2), num_classes: int = 1000, in_chans: int = 3, **head: Any
) -> StagedNet:
    """Build the authors' ImageNet network: bottlenecks, no shortcut where a stage widens, the streams concatenated.

    Args:
        blocks: blocks of every stage.
        num_classes: classes.
        in_chans: channels of the images.
        **head: ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    stem = nn.Sequential(nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1), TwoCopies())
    before = 64
    stages = []
    for number, repeats in enumerate(blocks):
        out, stride = 256 * 2**number, 1 if number == 0 else 2
        layers = []
        for position in range(repeats):
            s = stride if position == 0 else 1
            layers.append(MergeAndRunBlock(before, out, s, bottleneck=out // 4, shortcut="none"))
            before = out
        stages.append((nn.Sequential(*layers), 2 * out, stride))
    settings = {"num_classes": num_classes, "in_chans": in_chans, **head}
    return StagedNet(stem, 128, stages, num_features=2 * before, stem_reduction=4, **settings)


default_cfgs = generate_default_cfgs(
    {
        **{f"dmrnet{net}.untrained": configuration(32, 8, 10) for net in ("56", "32_w4", "50_w4", "_small")},
        "dmrnet50_imagenet.untrained": configuration(224, 32, 1000),
    }
)


@register_model
def dmrnet56(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """DFN-MR1, 56 layers, for CIFAR: 1,710,426 parameters."""
    return create(dmrnet, "dmrnet56", 3, pretrained, **kwargs)


@register_model
def dmrnet32_w4(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """DFN-MR2, 32 layers, four times as wide, for CIFAR: 14,851,402 parameters."""
    return create(dmrnet, "dmrnet32_w4", 3, pretrained, **{"depth": 32, "width": 4, **kwargs})


@register_model
def dmrnet50_w4(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """DFN-MR3, 50 layers, four times as wide, for CIFAR: 24,151,882 parameters."""
    return create(dmrnet, "dmrnet50_w4", 3, pretrained, **{"depth": 50, "width": 4, **kwargs})


@register_model
def dmrnet_small(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """Merge-and-run for 8x8 to 32x32 inputs: 8 layers, 154,970 parameters."""
    return create(dmrnet, "dmrnet_small", 3, pretrained, **{"depth": 8, **kwargs})


@register_model
def dmrnet50_imagenet(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """DFN-MR, 50 layers of bottlenecks, for ImageNet: 46,395,048 parameters."""
    return create(dmrnet_imagenet, "dmrnet50_imagenet", 4, pretrained, **kwargs)
