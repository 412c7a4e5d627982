"""``cs_lenet``: two convolutions for small images, the network of quick experiments on digits.

After LeCun, Bottou, Bengio, Haffner, Gradient-Based Learning Applied to Document Recognition, 1998. Differs from the
paper: 3x3 kernels, ReLU, max pooling, widths 8 and 16 and one hidden layer of 64 units.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from convsmith.errors import InvalidArgument
from convsmith.models.published import configuration, family
from convsmith.models.staged import intermediates

__all__ = ["LeNet"]


class LeNet(nn.Module):
    """conv - pool - conv - pool - linear - classifier. Images [B, C, H, W] with H and W at least 8, logits [B, K].

    The grid before the hidden layer is averaged to 4 x 4, so any size works; at 16 x 16 nothing is averaged.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_chans: int = 1,
        widths: tuple[int, int] = (8, 16),
        hidden: int = 64,
        global_pool: str = "grid",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans, self.drop_rate = num_classes, in_chans, drop_rate
        self.num_features, self.head_hidden_size = widths[1], hidden
        self.conv1 = nn.Conv2d(in_chans, widths[0], 3, padding=1)
        self.conv2 = nn.Conv2d(widths[0], widths[1], 3, padding=1)
        self.pool = nn.MaxPool2d(2)
        self.grid = nn.AdaptiveAvgPool2d(4)
        self.hidden = nn.Linear(widths[1] * 16, hidden)
        self.feature_info = [
            {"num_chs": widths[0], "reduction": 1, "module": "conv1"},
            {"num_chs": widths[1], "reduction": 2, "module": "conv2"},
        ]
        self.set_pool(num_classes, global_pool)

    def set_pool(self, num_classes: int, global_pool: str) -> None:
        """Set the classifier; "grid" is the only pooling, "" with 0 classes leaves the maps."""
        if global_pool not in ("grid", "") or (global_pool == "" and num_classes):
            rule = "this network averages to a grid of 4 x 4 in front of its hidden layer"
            raise InvalidArgument(rule, argument="global_pool", given=repr(global_pool))
        self.num_classes, self.pooled = num_classes, global_pool == "grid"
        self.fc = nn.Linear(self.head_hidden_size, num_classes) if num_classes else nn.Identity()

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the classifier, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put in a new classifier; 0 classes with ``global_pool=""`` leave the maps."""
        like = self.conv1.weight
        self.set_pool(num_classes, "grid" if global_pool is None else global_pool)
        self.fc = self.fc.to(device=like.device, dtype=like.dtype)

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns for layer-wise parameter groups."""
        return {"stem": r"^conv1", "blocks": r"^conv(\d+)"}

    @torch.jit.ignore
    def forward_intermediates(self, x: Tensor, **wanted: Any) -> Any:
        """Return the maps after each convolution; timm's arguments."""
        return intermediates(self, x, [("conv1", self._first), ("conv2", self._second)], **wanted)

    def finish(self, x: Tensor) -> Tensor:
        """Return what follows the last map."""
        return self.pool(x)

    def _first(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv1(x))

    def _second(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv2(self.pool(x)))

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the maps [B, widths[1], H/4, W/4]."""
        return self.finish(self._second(self._first(x)))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return the logits, or the hidden layer's output [B, hidden]."""
        if not self.pooled:
            return x
        x = torch.relu(self.hidden(self.grid(x).flatten(1)))
        if self.drop_rate > 0.0:
            x = nn.functional.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits [B, K]."""
        return self.forward_head(self.forward_features(x))


_CFG = {**configuration(16, 8, 10), "input_size": (1, 16, 16), "min_input_size": (1, 8, 8), "first_conv": "conv1"}
_add = family(
    __name__,
    LeNet,
    {**_CFG, "pool_size": None, "mean": (0.5,), "std": (0.5,)},
    feature_cfg={"feature_cls": "getter", "out_indices": (0, 1)},
)
_add("cs_lenet", "Two convolutions and a hidden layer: 18,346 parameters for 10 classes and grey input.")
