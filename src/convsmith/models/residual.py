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
from convsmith.models.pooled import PooledClassifier
from convsmith.models.published import configuration, family
from convsmith.models.staged import check_depth, doubling, stack

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


class CifarResNet(PooledClassifier):
    """A residual network for small images, ``[B, in_chans, H, W] -> [B, num_classes]`` for H, W of 8 or more.

    Args:
        depth: layers counted as in the paper; must be 6n + 2.
        width: channels of the first stage; the others have two and four times as many.
        shortcut: ``"pad"`` (option A, no parameters) or ``"conv"`` (option B, 1x1 convolution and norm).
        act_layer, norm_layer: timm names or classes.
        drop_rate: dropout before the classifier.
        drop_path_rate: stochastic depth of the last block, from zero at the first.

    Raises:
        InvalidArgument: a depth that is not 6n + 2, a width below 1, an unknown shortcut.
    """

    def __init__(
        self,
        depth: int = 20,
        width: int = 16,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        shortcut: str = "pad",
        act_layer: str | Callable[..., nn.Module] = nn.ReLU,
        norm_layer: str | Callable[..., nn.Module] = nn.BatchNorm2d,
    ) -> None:
        super().__init__()
        check_depth(depth, "a CIFAR residual", 6, 8)
        integer("width", width, least=1)
        one_of("shortcut", shortcut, SHORTCUTS)
        act, norm = get_act_layer(act_layer), get_norm_layer(norm_layer)
        self.in_chans, self.drop_rate = in_chans, drop_rate

        self.conv1 = nn.Conv2d(in_chans, width, 3, 1, 1, bias=False)
        self.bn1 = norm(width)
        self.act1 = act()
        self.feature_info = [{"num_chs": width, "reduction": 1, "module": "act1"}]

        def block(before: int, out: int, stride: int) -> nn.Module:
            return CifarBlock(before, out, stride, shortcut, act, norm)

        for n, (stage, out, _) in enumerate(stack(block, width, doubling(width, ((depth - 2) // 6,) * 3))):
            self.add_module(f"layer{n + 1}", stage)
            self.feature_info.append({"num_chs": out, "reduction": 2**n, "module": f"layer{n + 1}"})
        self.set_drop_path(drop_path_rate)
        self.add_head(4 * width, num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns for layer-wise parameter groups."""
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return the stem's modules and the three stages."""
        return [(name, getattr(self, name)) for name in ("conv1", "bn1", "act1", "layer1", "layer2", "layer3")]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, ``[B, in_chans, H, W] -> [B, 4 * width, ceil(H/4), ceil(W/4)]``."""
        stages: tuple[Any, ...] = (self.layer1, self.layer2, self.layer3)
        return self.run_stages(stages, self.act1(self.bn1(self.conv1(x))))


_add = family(__name__, CifarResNet, {**configuration(32, 8, 10), "first_conv": "conv1"}, stages=3)
for _depth, _count in ((20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)):
    _about = f"CIFAR-style ResNet-{_depth}: {_count:,} parameters for 10 classes and RGB input."
    _add(f"cs_resnet{_depth}", _about, depth=_depth)
