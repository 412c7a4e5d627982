"""Deep merge-and-run networks: two residual streams that exchange their mean before every block.

Paper: Zhao, Wang, Li, Tu, Zeng, "On the Connection of Deep Fusion to Ensembling" / "Deep Convolutional Neural Networks
with Merge-and-Run Mappings" (IJCAI 2018), section 3. https://arxiv.org/abs/1611.07718

Differs from the paper: nothing in structure and counts; the two streams stand stacked along the channels and both
branches run as convolutions of two groups.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convsmith.compression.operators.blocks import MergeAndRunBlock
from convsmith.models.published import configuration, family
from convsmith.models.staged import StagedNet, check_depth, conv_stem, doubling, stack

__all__ = ["TwoCopies", "dmrnet", "dmrnet_imagenet"]


class TwoCopies(nn.Module):
    """Start two equal streams, [B, C, H, W] -> [B, 2 C, H, W]."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x, x), 1)


def dmrnet(depth: int = 56, width: int = 1, base: int = 16, **head: Any) -> StagedNet:
    """Build a merge-and-run network for small images: stages of 1, 2 and 4 times ``base * width`` channels a stream.

    Args:
        depth: 6 n + 2; n blocks a stage, each with two branches of two 3x3 convolutions.
        width: multiplier of all widths.
        base: channels of the first stage before the multiplier.
        **head: ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    check_depth(depth, "a merge-and-run", 6, 8)
    first, count = base * width, (depth - 2) // 6
    merges = iter(["average"] * (3 * count - 1) + ["sum"])

    def block(before: int, out: int, stride: int) -> nn.Module:
        return MergeAndRunBlock(before, out, stride, merge=next(merges))

    stages = stack(block, first, doubling(first, (count,) * 3))
    # two streams stand side by side, until the last block adds them up
    seen = [(stage, 2 * out if n < 2 else out, stride) for n, (stage, out, stride) in enumerate(stages)]
    return StagedNet(conv_stem(first, after=TwoCopies()), 2 * first, seen, **head)


def dmrnet_imagenet(**head: Any) -> StagedNet:
    """Build the authors' ImageNet network: bottlenecks, no shortcut where a stage widens, the streams concatenated.

    ``head`` are ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """

    def stem(in_chans: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_chans, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1), TwoCopies())

    def block(before: int, out: int, stride: int) -> nn.Module:
        return MergeAndRunBlock(before, out, stride, bottleneck=out // 4, shortcut="none")

    stages = [(stage, 2 * out, stride) for stage, out, stride in stack(block, 64, doubling(256, (1, 2, 11, 2)))]
    return StagedNet(stem, 128, stages, **{"num_classes": 1000, "stem_reduction": 4, **head})


_cifar = family(__name__, dmrnet, configuration(32, 8, 10), stages=3)
_cifar("dmrnet56", "DFN-MR1, 56 layers, for CIFAR: 1,710,426 parameters.")
_cifar("dmrnet32_w4", "DFN-MR2, 32 layers, four times as wide, for CIFAR: 14,851,402 parameters.", depth=32, width=4)
_cifar("dmrnet50_w4", "DFN-MR3, 50 layers, four times as wide, for CIFAR: 24,151,882 parameters.", depth=50, width=4)
_cifar("dmrnet_small", "Merge-and-run for 8x8 to 32x32 inputs: 8 layers, 154,970 parameters.", depth=8)
_imagenet = family(__name__, dmrnet_imagenet, configuration(224, 32, 1000), stages=4)
_imagenet("dmrnet50_imagenet", "DFN-MR, 50 layers of bottlenecks, for ImageNet: 46,395,048 parameters.")
