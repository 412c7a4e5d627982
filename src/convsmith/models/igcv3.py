"""IGCV3 networks: MobileNetV2's plan with grouped pointwise convolutions and twice the depth.

Paper: Sun, Li, Liu, Wang, "IGCV3: Interleaved Low-Rank Group Convolutions for Efficient Deep Neural Networks"
(BMVC 2018), section 4. https://arxiv.org/abs/1806.00178. The layer tables are those of the authors' symbol files.

Differs from the paper: ``multiplier="fixed"`` (the default) scales every width once and rounds it to an even number;
the authors' script (``"authors"``) scales the expansion of a stage's first block twice and adds a channel to the last
convolution above 1. At width 1.0 the two are equal. The printed MACs of 0.7 and 1.4 follow from neither.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from convsmith.arguments import number, one_of
from convsmith.compression.operators.blocks import InvertedInterleavedBlock
from convsmith.models.published import configuration, family
from convsmith.models.staged import StagedNet, conv_stem, stack

__all__ = ["DEEP", "SMALL", "WIDE", "igcv3_net"]

#: (expansion t, channels c, repeats n, stride s) of every stage, ImageNet strides
Row = tuple[float, int, int, int]
DEEP: tuple[Row, ...] = (
    (1, 16, 1, 1),
    (6, 24, 4, 2),
    (6, 32, 6, 2),
    (6, 64, 8, 2),
    (6, 96, 6, 1),
    (6, 160, 6, 2),
    (6, 320, 1, 1),
)
WIDE: tuple[Row, ...] = (
    (1, 32, 1, 1),
    (6, 48, 2, 2),
    (6, 64, 3, 2),
    (6, 128, 4, 2),
    (6, 192, 3, 1),
    (6, 320, 3, 2),
    (6, 640, 1, 1),
)
#: for 8x8 to 32x32 images
SMALL: tuple[Row, ...] = ((1, 16, 1, 1), (4, 24, 3, 1), (4, 32, 4, 2), (4, 48, 3, 2))


def igcv3_net(
    rows: tuple[Row, ...] = DEEP,
    width: float = 1.0,
    multiplier: str = "fixed",
    groups: tuple[int, int] = (2, 2),
    stem_channels: int = 32,
    stem_stride: int = 2,
    last_channels: int = 1280,
    expand_activation: bool = False,
    permute_out: bool = False,
    **head: Any,
) -> StagedNet:
    """Build an IGCV3 network.

    Args:
        rows: the layer table.
        width: multiplier of all widths.
        multiplier: ``"fixed"``, ``"truncating"`` (int, then even; another public port) or ``"authors"``.
        groups: G1, G2 of every block; (1, 1) is MobileNetV2 with a linear expansion in the first block.
        stem_channels: channels of the 3x3 stem before the multiplier.
        stem_stride: its stride.
        last_channels: channels of the last 1x1 convolution; 0: none.
        expand_activation: see `InvertedInterleavedBlock`.
        permute_out: see `InvertedInterleavedBlock`.
        **head: ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    one_of("multiplier", multiplier, ("fixed", "truncating", "authors"))
    number("width", width, above=0)

    def scaled(channels: float) -> int:
        number = int(channels * width) if multiplier == "truncating" else round(channels * width)
        return number + number % 2

    turns = iter([(expansion, n == 0) for expansion, _, repeats, _ in rows for n in range(repeats)])

    def block(before: int, out: int, stride: int) -> nn.Module:
        expansion, begins = next(turns)
        # a width that was scaled already
        wide = scaled(before) if begins and multiplier == "authors" else before
        settings: dict[str, Any] = {"expand_activation": expand_activation, "permute_out": permute_out}
        hidden = round(wide * expansion)
        return InvertedInterleavedBlock(before, out, stride, expansion, *groups, hidden_channels=hidden, **settings)

    first = scaled(stem_channels)
    stages = stack(block, first, [(scaled(channels), repeats, stride) for _, channels, repeats, stride in rows])
    tail, features = None, stages[-1][1]
    if last_channels:
        before, features = features, last_channels
        if width > 1:
            features = int(last_channels * width) + (multiplier == "authors")
        tail = conv_stem(features, 1, act=nn.ReLU6)(before)
    stem = conv_stem(first, 3, stem_stride, nn.ReLU6)
    settings = {"num_classes": 1000, "stem_reduction": stem_stride, **head}
    return StagedNet(stem, first, stages, num_features=features, tail=tail, **settings)


_imagenet = family(__name__, igcv3_net, configuration(224, 32, 1000), stages=7)
_imagenet("igcv3_d_070", "IGCV3-D at width 0.7, for ImageNet: 2,502,486 parameters, 174.6 M MACs.", width=0.7)
_imagenet("igcv3_d_100", "IGCV3-D at width 1.0, for ImageNet: 3,491,688 parameters, 313.0 M MACs.")
_imagenet("igcv3_d_140", "IGCV3-D at width 1.4, for ImageNet: 6,023,004 parameters, 590.0 M MACs.", width=1.4)
_imagenet(
    "igcv3_w_100",
    "IGCV3-W (wider, as deep as MobileNetV2), for ImageNet: 5,724,968 parameters, 585.8 M MACs.",
    rows=WIDE,
)
_cifar = family(__name__, igcv3_net, configuration(32, 8, 10), stages=7)
_cifar(
    "igcv3_cifar",
    "IGCV3-D 1.0 with CIFAR strides: 2,223,498 parameters for 10 classes.",
    rows=tuple((t, c, repeats, 1 if c < 64 else stride) for t, c, repeats, stride in DEEP),  # total stride 4
    stem_stride=1,
)
_small = family(__name__, igcv3_net, configuration(32, 8, 10), stages=4)
_small(
    "igcv3_cifar_small",
    "IGCV3 for 8x8 to 32x32 inputs: eleven blocks of 16 to 48 channels, 62,778 parameters.",
    rows=SMALL,
    stem_stride=1,
    stem_channels=16,
    last_channels=0,
)
