"""What timm asks of a classifier that ends in ``global_pool`` and ``fc``, once for all networks of ours."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any

from timm.layers import DropPath, create_classifier
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint_sequential

from convsmith.errors import InvalidArgument
from convsmith.models.intermediates import intermediates, wanted_maps


class PooledClassifier(nn.Module):
    """Feature map, global pooling, classifier; subclasses make the feature map and call `add_head` last."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.num_classes = self.num_features = 0
        self.drop_rate = 0.0
        self.feature_info: list[dict[str, Any]] = []

    def add_head(self, num_features: int, num_classes: int, global_pool: str) -> None:
        """Add pooling and classifier for ``num_features`` channels."""
        self.num_features, self.num_classes = num_features, num_classes
        self.global_pool, self.fc = create_classifier(num_features, num_classes, pool_type=global_pool)
        self.head_hidden_size = num_features * self.global_pool.feat_mult()

    def set_drop_path(self, rate: float) -> None:
        """Give the residual blocks stochastic depth, from 0 at the first to ``rate`` at the last."""
        if not 0.0 <= rate < 1.0:
            raise InvalidArgument("a share from 0 to below 1", argument="drop_path_rate", given=rate)
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

    def run_stages(self, stages: Iterable[nn.Sequential], x: Tensor) -> Tensor:
        """Return ``x`` after all stages, with or without checkpoints."""
        for stage in stages:
            if self.grad_checkpointing and self.training:
                x = checkpoint_sequential(stage, len(stage), x, use_reentrant=False)
            else:
                x = stage(x)
        return x

    def __prepare_scriptable__(self) -> nn.Module:
        """Return what TorchScript compiles in place of this network: the same modules, by the same names, in a row."""
        head = (("global_pool", self.global_pool), ("drop", nn.Dropout(self.drop_rate)), ("fc", self.fc))
        return nn.Sequential(OrderedDict([*self.stages(), *head])).train(self.training)

    @abstractmethod
    def stages(self) -> list[tuple[str, nn.Module]]:
        """Return what `forward_features` runs, in order, by the names of ``feature_info``."""

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

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """Return the last feature map, [B, num_features, h, w]."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool and classify a feature map; ``pre_logits`` stops before the classifier."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=self.drop_rate, training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))
