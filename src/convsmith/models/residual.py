"""CIFAR-style residual networks: the regular-convolution control for every comparison.

Paper: He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition" (2016), section 4.2: a 3x3 stem, three
stages of n basic blocks with 16, 32 and 64 channels, 6n+2 layers in all, and parameter-free shortcuts (option A).
https://arxiv.org/abs/1512.03385

Differs from the paper: nothing in the defaults; width, depth, input channels and the shortcut kind are arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from timm.layers import get_act_layer, get_norm_layer
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.arguments import integer, one_of
from convsmith.models.published import configuration, family
from convsmith.models.staged import StagedNet, check_depth, doubling, stack

__all__ = ["CifarResNet"]

SHORTCUTS = ("pad", "conv")


class PadShortcut(nn.Module):
    """Option A of He et al. 3.3: take every ``stride``-th position, fill the new channels with zeros; no parameters.

    ``[B, C, H, W] -> [B, C + before + after, ceil(H/stride), ceil(W/stride)]``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.stride = in_channels, out_channels, stride
        self.before = (out_channels - in_channels) // 2
        self.after = out_channels - in_channels - self.before

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.before, self.after))

    def extra_repr(self) -> str:
        return f"{self.in_channels}, {self.out_channels}, stride={self.stride}"


class CifarBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: ``act2(bn2(conv2(act1(bn1(conv1(x))))) + shortcut(x))``.

    Activations are modules of their own and never in place, so that a hook on any of them sees what it should.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        shortcut: str,
        act_layer: Callable[..., nn.Module],
        norm_layer: Callable[..., nn.Module],
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, 1, bias=False)
        self.bn1 = norm_layer(out_channels)
        self.act1 = act_layer()
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, 1, 1, bias=False)
        self.bn2 = norm_layer(out_channels)
        self.act2 = act_layer()
        self.drop_path: nn.Module = nn.Identity()
        self.shortcut: nn.Module
        if stride == 1 and in_channels == out_channels:
            self.shortcut = nn.Identity()
        elif shortcut == "pad":
            self.shortcut = PadShortcut(in_channels, out_channels, stride)
        else:
            self.shortcut = nn.Sequential(
                nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), norm_layer(out_channels)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.act1(self.bn1(self.conv1(x)))))
        return self.act2(self.drop_path(y) + self.shortcut(x))


class CifarResNet(StagedNet):
    """A residual network for small images, ``[B, in_chans, H, W] -> [B, num_classes]`` for H, W of 8 or more.

    Args:
        depth: layers counted as in the paper; must be 6n + 2.
        width: channels of the first stage; the others have two and four times as many.
        shortcut: ``"pad"`` (option A, no parameters) or ``"conv"`` (option B, 1x1 convolution and norm).
        act_layer, norm_layer: timm names or classes.
        **head: ``num_classes``, ``in_chans``, ``global_pool``, ``drop_rate`` and ``drop_path_rate`` of `StagedNet`.

    Raises:
        InvalidArgument: a depth that is not 6n + 2, a width below 1, an unknown shortcut.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        shortcut: str = "pad",
        act_layer: str | Callable[..., nn.Module] = nn.ReLU,
        norm_layer: str | Callable[..., nn.Module] = nn.BatchNorm2d,
        **head: Any,
    ) -> None:
        check_depth(depth, "a CIFAR residual", 6, 8)
        integer("width", width, least=1)
        one_of("shortcut", shortcut, SHORTCUTS)
        act, norm = get_act_layer(act_layer), get_norm_layer(norm_layer)

        def block(before: int, out: int, stride: int) -> nn.Module:
            return CifarBlock(before, out, stride, shortcut, act, norm)

        super().__init__(
            lambda chans: {"conv1": nn.Conv2d(chans, width, 3, 1, 1, bias=False), "bn1": norm(width), "act1": act()},
            width,
            stack(block, width, doubling(width, ((depth - 2) // 6,) * 3)),
            fan="fan_out",
            **head,
        )


_add = family(__name__, CifarResNet, {**configuration(32, 8, 10), "first_conv": "conv1"}, stages=3)
for _depth, _count in ((20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)):
    _about = f"CIFAR-style ResNet-{_depth}: {_count:,} parameters for 10 classes and RGB input."
    _add(f"cs_resnet{_depth}", _about, depth=_depth)
