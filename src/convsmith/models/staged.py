"""The frame of our lean networks: stem, stages, an optional last convolution, pooling and classifier, as timm wants it.

Builders (one file per family) make the parts; this class only strings them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from timm.models import build_model_with_cfg
from torch import Tensor, nn

from convsmith.compression import LinearChain
from convsmith.models.pooled import PooledClassifier
from convsmith.models.published import check_published


class StagedNet(PooledClassifier):
    """``[B, in_chans, H, W] -> [B, num_classes]`` by ``stem``, ``layer1`` .. ``layerN``, ``tail``, pooling and ``fc``.

    Args:
        stem: first module; its output's ``stem_channels`` and ``stem_reduction`` go into ``feature_info``.
        stages: (modules, channels out, stride) of every stage.
        tail: a last module before pooling, with ``num_features`` channels out.
        drop_path_rate: stochastic depth of the last residual block, from zero at the first.

    Plain convolutions start by He's rule on their fan-in, chains by their own.
    """

    def __init__(
        self,
        stem: nn.Module,
        stem_channels: int,
        stages: Sequence[tuple[nn.Sequential, int, int]],
        *,
        num_features: int,
        stem_reduction: int = 1,
        tail: nn.Module | None = None,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans, self.drop_rate = in_chans, drop_rate
        self.stem = stem
        self.feature_info = [{"num_chs": stem_channels, "reduction": stem_reduction, "module": "stem"}]
        self.depth = len(stages)
        reduction = stem_reduction
        for number, (stage, channels, stride) in enumerate(stages, 1):
            reduction *= stride
            self.add_module(f"layer{number}", stage)
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"layer{number}"})
        self.tail = nn.Identity() if tail is None else tail
        self.set_drop_path(drop_path_rate)
        self.add_head(num_features, num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
            elif isinstance(module, LinearChain):
                module.reset_parameters()

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns for layer-wise parameter groups."""
        return {"stem": r"^stem", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return stem, stages and tail."""
        layers = [f"layer{number}" for number in range(1, self.depth + 1)]
        return [(name, getattr(self, name)) for name in ("stem", *layers, "tail")]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, ``[B, in_chans, H, W] -> [B, num_features, h, w]``."""
        stages: list[Any] = [getattr(self, f"layer{number}") for number in range(1, self.depth + 1)]
        return self.tail(self.run_stages(stages, self.stem(x)))


def spread(blocks: int, stages: int) -> tuple[int, ...]:
    """Distribute blocks over stages, the later ones taking the remainder (8 over 3: 2, 3, 3)."""
    base, extra = divmod(blocks, stages)
    return tuple(base + (number >= stages - extra) for number in range(stages))


def configuration(size: int, least: int, classes: int) -> dict[str, Any]:
    """Return timm's default configuration of a network of ours, which never has published weights."""
    small = size <= 64
    return {
        "url": "",
        "num_classes": classes,
        "input_size": (3, size, size),
        "min_input_size": (3, least, least),
        "pool_size": (math.ceil(size / 4), math.ceil(size / 4)) if small else (7, 7),
        "crop_pct": 1.0 if small else 0.875,
        "interpolation": "bilinear",
        "mean": (0.4914, 0.4822, 0.4465) if small else (0.485, 0.456, 0.406),
        "std": (0.2470, 0.2435, 0.2616) if small else (0.229, 0.224, 0.225),
        "fixed_input_size": False,
        "first_conv": "stem.0",
        "classifier": "fc",
        "license": "apache-2.0",
    }


def create(builder: Any, name: str, stages: int, pretrained: bool, **settings: Any) -> StagedNet:
    """Build through timm, so that ``features_only``, ``in_chans`` and ``num_classes`` work as everywhere."""
    check_published(name, pretrained, settings)
    feature_cfg = {"out_indices": tuple(range(stages + 1)), "flatten_sequential": False}
    return build_model_with_cfg(builder, name, pretrained, feature_cfg=feature_cfg, **settings)
