"""The frame of our lean networks: stem, stages, an optional last convolution, pooling and classifier, as timm wants it.

Builders (one file per family) make the parts; this class only strings them together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from convsmith.compression import LinearChain
from convsmith.errors import InvalidArgument
from convsmith.models.pooled import PooledClassifier


class StagedNet(PooledClassifier):
    """``[B, in_chans, H, W] -> [B, num_classes]`` by ``stem``, ``layer1`` .. ``layerN``, ``tail``, pooling and ``fc``.

    Args:
        stem: first module; its output's ``stem_channels`` and ``stem_reduction`` go into ``feature_info``.
        stages: (modules, channels out, stride) of every stage.
        num_features: channels that are pooled, those of the last stage if not given.
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
        num_features: int | None = None,
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
        self.add_head(stages[-1][1] if num_features is None else num_features, num_classes, global_pool)
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


def stack(
    make: Callable[[int, int, int], nn.Module], before: int, plan: Iterable[tuple[int, int, int]]
) -> list[tuple[nn.Sequential, int, int]]:
    """Return the stages of `StagedNet`: ``make(channels in, channels out, stride)`` for every block.

    ``plan`` holds (channels out, blocks, stride of the first block) of every stage, ``before`` the stem's channels.
    """
    stages = []
    for out, repeats, stride in plan:
        blocks = [make(before if n == 0 else out, out, stride if n == 0 else 1) for n in range(repeats)]
        stages.append((nn.Sequential(*blocks), out, stride))
        before = out
    return stages


def doubling(channels: int, blocks: Sequence[int]) -> list[tuple[int, int, int]]:
    """Return a plan for `stack` whose channels double, and whose sides halve, from stage to stage."""
    return [(channels * 2**n, count, 1 if n == 0 else 2) for n, count in enumerate(blocks)]


def conv_stem(
    in_chans: int, channels: int, kernel: int = 3, stride: int = 1, act: Callable[[], nn.Module] = nn.ReLU
) -> nn.Sequential:
    """Return convolution, normalisation and activation."""
    conv = nn.Conv2d(in_chans, channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(channels), act())


def check_depth(depth: int, kind: str, step: int, least: int) -> None:
    """Refuse a depth that is not ``step * n + 2``."""
    if depth < least or (depth - 2) % step:
        below = max(depth - (depth - 2) % step, least)
        rule, hint = f"{kind} network has {step}n + 2 layers", f"nearest: {below} or {below + step}"
        raise InvalidArgument(rule, argument="depth", given=depth, hint=hint)
