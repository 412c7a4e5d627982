"""``cs_lenet``: two convolutions for small images, the network of quick experiments on digits.

After LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998. Differs from the
paper: 3x3 kernels, ReLU, max pooling, widths 8 and 16 and one hidden layer of 64 units.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import Tensor, nn

from convsmith.errors import InvalidArgument

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """conv - pool - conv - pool - linear - classifier. Images [B, C, H, W] with H and W at least 8, logits [B, K].

    The grid before the hidden layer is averaged to 4 x 4, so any size works; at 16 x 16 nothing is averaged.
    """

    def __init__(
        self, num_classes: int = 10, in_chans: int = 1, widths: tuple[int, int] = (8, 16), hidden: int = 64
    ) -> None:
        super().__init__()
        self.num_classes, self.num_features, self.head_hidden_size = num_classes, hidden, hidden
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.grid = nn.AdaptiveAvgPool2d(4)
        self.hidden = nn.Linear(widths[1] * 16, hidden)
        self.fc = nn.Linear(hidden, num_classes) if num_classes else nn.Identity()

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new classifier; there is no global pooling to change."""
        self.num_classes = num_classes
        self.fc = nn.Linear(self.num_features, num_classes) if num_classes else nn.Identity()

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps [B, widths[1], H/4, W/4]."""
        x = self.pool(torch.relu(self.conv1(x)))
        return self.pool(torch.relu(self.conv2(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or the hidden layer's output [B, hidden]."""
        if x.shape[-2:] != (4, 4):
            x = self.grid(x)
        x = torch.relu(self.hidden(x.flatten(1)))
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K]."""
        return self.forward_head(self.forward_features(x))


default_cfgs = generate_default_cfgs(
    {
        "cs_lenet.untrained": {
            "url": "",
            "num_classes": 10,
            "input_size": (1, 16, 16),
            "min_input_size": (1, 8, 8),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bilinear",
            "mean": (0.5,),
            "std": (0.5,),
            "fixed_input_size": False,
            "first_conv": "conv1",
            "classifier": "fc",
            "license": "apache-2.0",
        }
    }
)


@register_model
def cs_lenet(pretrained: bool = False, **kwargs: Any) -> LeNet:
    """Two convolutions and a hidden layer: 18,346 parameters for 10 classes and grey input."""
    if pretrained:
        raise InvalidArgument("this network has no published weights", argument="pretrained=True", given="cs_lenet")
    return build_model_with_cfg(LeNet, "cs_lenet", False, **kwargs)
