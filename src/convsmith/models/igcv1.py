"""IGCV1 networks: wide plain and residual stacks of interleaved group convolutions, with their regular controls.

Paper: Zhang, Qi, Xiao, Wang, "Interleaved Group Convolutions for Deep Neural Networks" (ICCV 2017), section 5.
https://arxiv.org/abs/1707.02725. Depths, widths, shortcuts and counts are those of the authors' symbol graphs.

Differs from the paper: nothing in the defaults of the published names; ``widening="consistent"`` (the default of the
small variants) gives every secondary convolution as many groups as the primary has members, where the authors' residual
CIFAR networks take the members before the widening. Initialisation keeps the variance through the two linear factors
(the authors draw both by He's rule).
"""

from __future__ import annotations

from typing import Any

from torch import nn

from convsmith.arguments import one_of
from convsmith.compression import InterleavedGroupConv2d
from convsmith.compression.operators.blocks import ChainBlock, ChainResidual
from convsmith.errors import InvalidArgument
from convsmith.models.published import configuration, family
from convsmith.models.staged import StagedNet, check_depth, conv_stem, doubling, spread, stack

__all__ = ["igcv1_imagenet", "igcv1_net"]


def igcv1_net(
    depth: int = 20,
    primary: int | None = 24,
    members: int = 2,
    residual: bool = False,
    widening: str = "authors",
    width: int | None = None,
    **head: Any,
) -> StagedNet:
    """Build a network for small images: 3x3 stem, three stages of C, 2 C and 4 C channels, C = L M.

    Args:
        depth: 3 n + 2 plain (a block is a layer); 2 n + 2 residual (two blocks a branch, n shared out over the stages).
        primary: L of all stages; the members double from stage to stage. ``None``: regular convolutions of ``width``.
        members: M of the first stage.
        residual: identity shortcuts around two blocks ("+Ident.").
        widening: where a residual stage begins, ``"authors"``: as many secondary groups as members come in (two paths
            per pair), or ``"consistent"``: as many as go out. Plain networks are consistent, the authors' too.
        width: channels of the regular control.
        **head: ``num_classes``, ``in_chans``, ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    one_of("widening", widening, ("authors", "consistent"))
    check_depth(depth, "a residual" if residual else "a plain", 2 if residual else 3, 8 if residual else 5)
    if primary is None and width is None:
        raise InvalidArgument("a regular network needs its width", argument="primary=None", hint="give width")
    channels = width if primary is None else primary * members
    assert channels is not None

    def block(before: int, out: int, stride: int) -> nn.Module:
        if residual:
            return _residual(before, out, stride, primary, widening)
        return ChainBlock(_chain(before, out, stride, primary), out)

    stages = stack(block, channels, doubling(channels, spread((depth - 2) // (2 if residual else 1), 3)))
    return StagedNet(conv_stem(channels), channels, stages, **head)


def igcv1_imagenet(
    primary: int | None = 100,
    members: int = 2,
    grow: str = "primary",
    width: int | None = None,
    **head: Any,
) -> StagedNet:
    """Build the 18-layer ImageNet network: 7x7 stem, max-pool, four stages of two residual blocks.

    ``grow="primary"`` (L100M2): L doubles and M stays; the stem has L channels and the first block widens.
    ``grow="members"`` (L4M32, L16M16): M doubles and L stays; the stem has L M channels. ``primary=None``: ResNet-18
    with ``width`` channels in its first stage.
    """
    one_of("grow", grow, ("primary", "members"))
    if primary is None:
        if width is None:
            raise InvalidArgument("a regular network needs its width", argument="primary=None", hint="give width")
        channels = stem_channels = width
    else:
        channels = primary * members
        stem_channels = primary if grow == "primary" else channels

    def block(before: int, out: int, stride: int) -> nn.Module:
        groups = primary * out // channels if primary is not None and grow == "primary" else primary
        return _residual(before, out, stride, groups, "consistent")

    stem = conv_stem(stem_channels, 7, 2, after=nn.MaxPool2d(3, 2, 1))
    stages = stack(block, stem_channels, doubling(channels, (2,) * 4))
    return StagedNet(stem, stem_channels, stages, **{"num_classes": 1000, "stem_reduction": 4, **head})


def _chain(into: int, out: int, stride: int, primary: int | None, secondary: int | None = None) -> nn.Module:
    if primary is None:
        return nn.Conv2d(into, out, 3, stride, 1, bias=False)
    members, out_members = into // primary, out // primary
    return InterleavedGroupConv2d(primary, members, 3, stride, out_members=out_members, secondary_groups=secondary)


def _residual(into: int, out: int, stride: int, primary: int | None, widening: str) -> ChainResidual:
    secondary = None
    shortcut = None
    if stride != 1 or into != out:
        if primary is not None and widening == "authors":
            secondary = into // primary
        groups = 1 if primary is None else primary
        shortcut = nn.Sequential(nn.Conv2d(into, out, 1, stride, groups=groups, bias=False), nn.BatchNorm2d(out))
    return ChainResidual(_chain(into, out, stride, primary, secondary), _chain(out, out, 1, primary), out, shortcut)


_cifar = family(__name__, igcv1_net, configuration(32, 8, 10), stages=3)
_cifar("igcv1_l4m8_d20", "IGC-L4M8, 20 layers, plain, for CIFAR: 277,546 parameters.", primary=4, members=8)
_cifar("igcv1_l24m2_d20", "IGC-L24M2, 20 layers, plain, for CIFAR: 155,962 parameters.")
_cifar("igcv1_l24m2_d38", "IGC-L24M2, 38 layers, plain, for CIFAR: 317,242 parameters.", depth=38)
_cifar("igcv1_l24m2_d20_ident", "IGC-L24M2+Ident., 20 layers, residual, for CIFAR: 164,410 parameters.", residual=True)
_cifar(
    "igcv1_l24m2_d50_ident",
    "IGC-L24M2+Ident., 50 layers, residual, for CIFAR: 433,210 parameters.",
    depth=50,
    residual=True,
)
_cifar(
    "igcv1_l16m32_d20_ident",
    "IGC-L16M32+Ident., 20 layers, residual, for CIFAR: 17,746,442 parameters.",
    primary=16,
    members=32,
    residual=True,
)
_cifar(
    "igcv1_small",
    "IGCV1 for 8x8 to 32x32 inputs: L24M2+Ident., 14 layers, one path per pair everywhere, 103,738 parameters.",
    depth=14,
    residual=True,
    widening="consistent",
)
_imagenet = family(__name__, igcv1_imagenet, configuration(224, 32, 1000), stages=4)
_imagenet("igcv1_l100m2", "IGC-L100M2+Ident., 18 layers, for ImageNet: 8,637,900 parameters.")
_imagenet(
    "igcv1_l16m16",
    "IGC-L16M16+Ident., 18 layers, for ImageNet: 13,528,296 parameters.",
    primary=16,
    members=16,
    grow="members",
)
_imagenet(
    "igcv1_l4m32",
    "IGC-L4M32+Ident., 18 layers, for ImageNet: 12,251,240 parameters.",
    primary=4,
    members=32,
    grow="members",
)
