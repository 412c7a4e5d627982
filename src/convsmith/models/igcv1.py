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

from timm.models import generate_default_cfgs, register_model
from torch import nn

from convsmith.compression import InterleavedGroupConv2d
from convsmith.compression.operators.blocks import ChainBlock, ChainResidual
from convsmith.errors import InvalidArgument
from convsmith.models.staged import StagedNet, configuration, create, spread

__all__ = ["igcv1_imagenet", "igcv1_net"]


def igcv1_net(
    depth: int = 20,
    primary: int | None = 24,
    members: int = 2,
    residual: bool = False,
    widening: str = "authors",
    width: int | None = None,
    num_classes: int = 10,
    in_chans: int = 3,
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
        num_classes: classes.
        in_chans: channels of the images.
        **head: ``global_pool`` and ``drop_rate`` of `StagedNet`.
    """
    if widening not in ("authors", "consistent"):
        raise InvalidArgument("widening is 'authors' or 'consistent'", given=repr(widening))
    step = 2 if residual else 3
    if depth < 2 + 3 * (2 if residual else 1) or (depth - 2) % step:
        below = max(depth - (depth - 2) % step, 8 if residual else 5)
        raise InvalidArgument(
            f"a {'residual' if residual else 'plain'} network has {step}n + 2 layers, three stages at least",
            argument="depth",
            given=depth,
            hint=f"nearest: {below} or {below + step}",
        )
    if primary is None and width is None:
        raise InvalidArgument("a regular network needs its width", argument="primary=None", hint="give width")
    channels = width if primary is None else primary * members
    assert channels is not None
    stem = _stem(in_chans, channels)
    stages: list[tuple[nn.Sequential, int, int]] = []
    before = channels
    for number, count in enumerate(spread((depth - 2) // (2 if residual else 1), 3)):
        out, stride = channels * 2**number, 1 if number == 0 else 2
        blocks: list[nn.Module] = []
        for position in range(count):
            s = stride if position == 0 else 1
            if residual:
                blocks.append(_residual(before, out, s, primary, widening))
            else:
                blocks.append(ChainBlock(_chain(before, out, s, primary), out))
            before = out
        stages.append((nn.Sequential(*blocks), out, stride))
    return StagedNet(stem, channels, stages, num_features=before, num_classes=num_classes, in_chans=in_chans, **head)


def igcv1_imagenet(
    primary: int | None = 100,
    members: int = 2,
    grow: str = "primary",
    width: int | None = None,
    num_classes: int = 1000,
    in_chans: int = 3,
    **head: Any,
) -> StagedNet:
    """Build the 18-layer ImageNet network: 7x7 stem, max-pool, four stages of two residual blocks.

    ``grow="primary"`` (L100M2): L doubles and M stays; the stem has L channels and the first block widens.
    ``grow="members"`` (L4M32, L16M16): M doubles and L stays; the stem has L M channels. ``primary=None``: ResNet-18
    with ``width`` channels in its first stage.
    """
    if grow not in ("primary", "members"):
        raise InvalidArgument("a stage grows its 'primary' partitions or their 'members'", given=repr(grow))
    if primary is None:
        if width is None:
            raise InvalidArgument("a regular network needs its width", argument="primary=None", hint="give width")
        channels = stem_channels = width
    else:
        channels = primary * members
        stem_channels = primary if grow == "primary" else channels
    stem = nn.Sequential(
        nn.Conv2d(in_chans, stem_channels, 7, 2, 3, bias=False),
        nn.BatchNorm2d(stem_channels),
        nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
    )
    before = stem_channels
    stages = []
    for number in range(4):
        out, stride = channels * 2**number, 1 if number == 0 else 2
        groups = primary * 2**number if primary is not None and grow == "primary" else primary
        blocks = []
        for position in range(2):
            blocks.append(_residual(before, out, stride if position == 0 else 1, groups, "consistent"))
            before = out
        stages.append((nn.Sequential(*blocks), out, stride))
    settings = {"num_classes": num_classes, "in_chans": in_chans, **head}
    return StagedNet(stem, stem_channels, stages, num_features=before, stem_reduction=4, **settings)


def _stem(in_chans: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_chans, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels), nn.ReLU())


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


default_cfgs = generate_default_cfgs(
    {
        **{f"igcv1_{net}.untrained": configuration(32, 8, 10) for net in ("l4m8_d20", "l24m2_d20", "l24m2_d38")},
        **{f"igcv1_{net}.untrained": configuration(32, 8, 10) for net in ("l24m2_d20_ident", "l24m2_d50_ident")},
        **{f"igcv1_{net}.untrained": configuration(32, 8, 10) for net in ("l16m32_d20_ident", "small")},
        **{f"igcv1_{net}.untrained": configuration(224, 32, 1000) for net in ("l100m2", "l16m16", "l4m32")},
    }
)


@register_model
def igcv1_l4m8_d20(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L4M8, 20 layers, plain, for CIFAR: 277,546 parameters."""
    return create(igcv1_net, "igcv1_l4m8_d20", 3, pretrained, **{"primary": 4, "members": 8, **kwargs})


@register_model
def igcv1_l24m2_d20(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L24M2, 20 layers, plain, for CIFAR: 155,962 parameters."""
    return create(igcv1_net, "igcv1_l24m2_d20", 3, pretrained, **kwargs)


@register_model
def igcv1_l24m2_d38(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L24M2, 38 layers, plain, for CIFAR: 317,242 parameters."""
    return create(igcv1_net, "igcv1_l24m2_d38", 3, pretrained, **{"depth": 38, **kwargs})


@register_model
def igcv1_l24m2_d20_ident(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L24M2+Ident., 20 layers, residual, for CIFAR: 164,410 parameters."""
    return create(igcv1_net, "igcv1_l24m2_d20_ident", 3, pretrained, **{"residual": True, **kwargs})


@register_model
def igcv1_l24m2_d50_ident(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L24M2+Ident., 50 layers, residual, for CIFAR: 433,210 parameters."""
    return create(igcv1_net, "igcv1_l24m2_d50_ident", 3, pretrained, **{"depth": 50, "residual": True, **kwargs})


@register_model
def igcv1_l16m32_d20_ident(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L16M32+Ident., 20 layers, residual, for CIFAR: 17,746,442 parameters."""
    settings = {"primary": 16, "members": 32, "residual": True, **kwargs}
    return create(igcv1_net, "igcv1_l16m32_d20_ident", 3, pretrained, **settings)


@register_model
def igcv1_small(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGCV1 for 8x8 to 32x32 inputs: L24M2+Ident., 14 layers, one path per pair everywhere, 103,738 parameters."""
    settings = {"depth": 14, "residual": True, "widening": "consistent", **kwargs}
    return create(igcv1_net, "igcv1_small", 3, pretrained, **settings)


@register_model
def igcv1_l100m2(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L100M2+Ident., 18 layers, for ImageNet: 8,637,900 parameters."""
    return create(igcv1_imagenet, "igcv1_l100m2", 4, pretrained, **kwargs)


@register_model
def igcv1_l16m16(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L16M16+Ident., 18 layers, for ImageNet: 13,528,296 parameters."""
    settings = {"primary": 16, "members": 16, "grow": "members", **kwargs}
    return create(igcv1_imagenet, "igcv1_l16m16", 4, pretrained, **settings)


@register_model
def igcv1_l4m32(pretrained: bool = False, **kwargs: Any) -> StagedNet:
    """IGC-L4M32+Ident., 18 layers, for ImageNet: 12,251,240 parameters."""
    settings = {"primary": 4, "members": 32, "grow": "members", **kwargs}
    return create(igcv1_imagenet, "igcv1_l4m32", 4, pretrained, **settings)
