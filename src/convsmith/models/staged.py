"""The frame of our networks: stem, stages, an optional last convolution, pooling and classifier, as timm wants it.

Builders (one file per family) make the parts; this class only strings them together.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

from timm.layers import DropPath, create_classifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint_sequential

from convsmith import arguments
from convsmith.compression import LinearChain
from convsmith.errors import InvalidArgument


class StagedNet(nn.Module):
    """``[B, in_chans, H, W] -> [B, num_classes]`` by ``stem``, ``layer1`` .. ``layerN``, ``tail``, pooling and ``fc``.

    Args:
        stem: makes the first module, or several by their names, for the channels of the images; ``stem_channels`` and
            ``stem_reduction`` of the last one's output go into ``feature_info``.
        stages: (modules, channels out, stride) of every stage.
        num_features: channels that are pooled, those of the last stage if not given.
        tail: a last module before pooling, with ``num_features`` channels out.
        drop_path_rate: stochastic depth of the last residual block, from zero at the first.
        fan: by which plain convolutions start, with He's rule; chains start by their own.
    """

    def __init__(
        self,
        stem: Callable[[int], nn.Module | Mapping[str, nn.Module]],
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
        fan: Literal["fan_in", "fan_out"] = "fan_in",
    ) -> None:
        super().__init__()
        self.in_chans, self.drop_rate, self.grad_checkpointing = in_chans, drop_rate, False
        first = stem(in_chans)
        parts = dict(first) if isinstance(first, Mapping) else {"stem": first}
        reduction = stem_reduction
        self.feature_info: list[dict[str, Any]] = [
            {"num_chs": stem_channels, "reduction": reduction, "module": list(parts)[-1]}
        ]
        for number, (stage, channels, stride) in enumerate(stages, 1):
            reduction *= stride
            parts[f"layer{number}"] = stage
            self.feature_info.append({"num_chs": channels, "reduction": reduction, "module": f"layer{number}"})
        if tail is not None:
            parts["tail"] = tail
        self.parts = tuple(parts)
        for name, part in parts.items():
            self.add_module(name, part)
        self.set_drop_path(drop_path_rate)
        self.add_head(stages[-1][1] if num_features is None else num_features, num_classes, global_pool)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode=fan, nonlinearity="relu")
            elif isinstance(module, LinearChain):
                module.reset_parameters()

    def add_head(self, num_features: int, num_classes: int, global_pool: str) -> None:
        """Add pooling and classifier for ``num_features`` channels."""
        self.num_features, self.num_classes = num_features, num_classes
        self.global_pool, self.fc = create_classifier(num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = num_features * self.global_pool.feat_mult()

    def set_drop_path(self, rate: float) -> None:
        """Give the residual blocks stochastic depth, from 0 at the first to ``rate`` at the last."""
        arguments.number("drop_path_rate", rate, least=0, below=1)
        blocks: list[Any] = [m for m in self.modules() if hasattr(m, "drop_path") and getattr(m, "has_identity", True)]
        if rate and not blocks:
            rule = "a network without residual blocks has no paths to drop"
            raise InvalidArgument(rule, argument="drop_path_rate", given=rate)
        for number, block in enumerate(blocks):
            share = rate * number / max(len(blocks) - 1, 1)
            block.drop_path = DropPath(share) if share else nn.Identity()

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Trade time for memory: recompute the stages' activations in the backward pass."""
        self.grad_checkpointing = enable

    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        """Return the classifier module, or its name."""
        return "fc" if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier (0 classes: features only) and, if named, the pooling."""
        like = next(self.parameters())
        self.add_head(
            self.num_features, num_classes, global_pool if global_pool is not None else self.global_pool.pool_type
        )
        self.fc = self.fc.to(device=like.device, dtype=like.dtype)

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what TorchScript compiles in place of this network: the same modules, by the same names, in a row."""
        head = (("global_pool", self.global_pool), ("drop", nn.Dropout(self.drop_rate)), ("fc", self.fc))
        return nn.Sequential(OrderedDict([*self.stages(), *head])).train(self.training)

    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return what `forward_features` runs, in order: stem, stages and tail."""
        return [(name, self.get_submodule(name)) for name in self.parts]

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, ``[B, in_chans, H, W] -> [B, num_features, h, w]``."""
        for name, part in self.stages():
            if self.grad_checkpointing and self.training and name.startswith("layer"):
                x = checkpoint_sequential(part, len(part), x, use_reentrant=False)  # type: ignore[arg-type]  # a stage
            else:
                x = part(x)
        return x

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        """Return timm's patterns for layer-wise parameter groups."""
        stem = "|".join(name for name in self.parts if not name.startswith(("layer", "tail")))
        return {"stem": rf"^(?:{stem})", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def forward_intermediates(self, x: Tensor, *args: Any, **wanted: Any) -> Any:
        """Return the maps after the stages, and the last one unless ``intermediates_only``; timm's arguments."""
        names = ("indices", "norm", "stop_early", "output_fmt", "intermediates_only")
        return intermediates(self, x, self.stages(), **dict(zip(names, args, strict=False)), **wanted)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Replace the stages after the last map that is wanted by identities; return the maps' numbers."""
        infos = self.feature_info
        taken = wanted_maps(len(infos), indices)
        names = [name for name, _ in self.stages()]
        for name in names[names.index(infos[max(taken)]["module"]) + 1 :]:
            self.set_submodule(name, nn.Identity())
        if prune_head:
            self.reset_classifier(0, "")
        return taken

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a feature map; ``pre_logits`` stops before the classifier."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


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
    channels: int,
    kernel: int = 3,
    stride: int = 1,
    act: Callable[[], nn.Module] = nn.ReLU,
    after: nn.Module | None = None,
) -> Callable[[int], nn.Sequential]:
    """Return what makes convolution, normalisation, activation and ``after`` for a number of channels in."""

    def make(in_chans: int) -> nn.Sequential:
        conv = nn.Conv2d(in_chans, channels, kernel, stride, kernel // 2, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(channels), act(), *([] if after is None else [after]))

    return make


def check_depth(depth: int, kind: str, step: int, least: int) -> None:
    """Refuse a depth that is not ``step * n + 2``."""
    if depth < least or (depth - 2) % step:
        below = max(depth - (depth - 2) % step, least)
        rule, hint = f"{kind} network has {step}n + 2 layers", f"nearest: {below} or {below + step}"
        raise InvalidArgument(rule, argument="depth", given=depth, hint=hint)


def intermediates(
    model: nn.Module,
    x: Tensor,
    stages: Sequence[tuple[str, Callable[[Tensor], Tensor]]],
    *,
    indices: int | list[int] | None = None,
    norm: bool = False,
    stop_early: bool = False,
    output_fmt: str = "NCHW",
    intermediates_only: bool = False,
) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
    """Run ``stages`` in turn and collect the maps named in ``model.feature_info``.

    Args:
        model: the network, for its ``feature_info`` and, after the last stage, its ``finish``.
        x: images [B, C, H, W].
        stages: names and functions; the names that count are those of ``feature_info``.
        indices: which maps: the last n, these, or None for all.
        norm: no network of ours has a last normalisation to apply; anything but False is an error.
        stop_early: do not run what follows the last map that is wanted.
        output_fmt: only ``"NCHW"``.
        intermediates_only: leave the final features out.
    """
    if output_fmt != "NCHW":
        raise InvalidArgument("maps come as NCHW", argument="output_fmt", given=repr(output_fmt))
    if norm:
        raise InvalidArgument("there is no last normalisation to apply", argument="norm", given=repr(norm))
    counted = [info["module"] for info in model.feature_info]  # type: ignore[union-attr]  # timm's interface
    taken = wanted_maps(len(counted), indices)
    found = []
    for name, stage in stages:
        place = counted.index(name) if name in counted else None
        if stop_early and place is not None and place > max(taken):
            break
        x = stage(x)
        if place in taken:
            found.append(x)
    if intermediates_only:
        return found
    finish = getattr(model, "finish", None)
    return (x if finish is None else finish(x)), found


def wanted_maps(count: int, indices: int | list[int] | None) -> list[int]:
    """Return the numbers of the maps that ``indices`` means out of ``count``: the last n, these, or all."""
    if indices is None:
        return list(range(count))
    asked = list(range(count - indices, count)) if isinstance(indices, int) else list(indices)
    if not asked or any(not -count <= place < count for place in asked) or (isinstance(indices, int) and asked[0] < 0):
        raise InvalidArgument(f"there are {count} maps", argument="indices", given=repr(indices))
    return [place % count for place in asked]
