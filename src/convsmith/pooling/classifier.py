"""A backbone with a pooling and a classifier of its own, as timm wants a network."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from convsmith.arguments import checked
from convsmith.errors import InvalidArgument
from convsmith.inspection.feature_maps import feature_fn, input_shape
from convsmith.pooling.layers import Pooling

#: timm's name for any backbone with an attached pooling (`convsmith.models.attached`)
ATTACHED = "attached_pooling"


class PooledClassifier(nn.Module):
    """A backbone, a `Pooling` and a classifier; speaks timm's interface.

    ``forward_features`` gives the map [B, C, H, W] that enters the pooling, ``forward_head(..., pre_logits=True)`` the
    pooled vector, ``reset_classifier`` a new classifier on the same pooling. ``pooling_recipe`` is the JSON-able
    dictionary with which ``attach(backbone, **pooling_recipe)`` builds the same structure again. ``layout`` says what
    the backbone gives: ``"NCHW"``, ``"NHWC"``, or ``"tokens"`` [B, N, C].
    """

    pretrained_cfg: dict[str, Any]
    _model_args: dict[str, Any]

    def __init__(
        self,
        backbone: nn.Module,
        pooling: Pooling,
        num_classes: int,
        *,
        hidden: Sequence[int] = (),
        drop_rate: float = 0.0,
        head_lr_mult: float = 1.0,
        layout: str = "NCHW",
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self._read = feature_fn(backbone)
        self.layout = layout
        self.num_features, self.head_hidden_size = pooling.in_channels, pooling.out_features
        self.hidden, self.drop_rate = tuple(hidden), float(drop_rate)
        self.head_lr_mult = float(head_lr_mult)
        self.pooling_recipe = dict(recipe or {})
        self.num_classes = num_classes
        self.in_chans = input_shape(backbone)[0]
        self.pooled = True
        self.classifier = self._classifier(num_classes)
        own = dict(getattr(backbone, "pretrained_cfg", None) or {})
        first = own.get("first_conv")
        if first:
            several = not isinstance(first, str)
            own["first_conv"] = tuple(f"backbone.{n}" for n in first) if several else f"backbone.{first}"
        if own:
            last = 3 * len(self.hidden) or int(self.drop_rate > 0)
            own["classifier"] = f"classifier.{last}" if last else "classifier"
        self.pretrained_cfg = self.default_cfg = own  # timm's two names

    def _classifier(self, num_classes: int) -> nn.Module:
        if num_classes == 0:
            return nn.Identity()
        sizes = (self.pooling.out_features, *self.hidden)
        layers: list[nn.Module] = []
        for size, following in zip(sizes, self.hidden, strict=False):
            layers += [nn.Linear(size, following), nn.ReLU(inplace=True), nn.Dropout(self.drop_rate)]
        if not self.hidden and self.drop_rate:
            layers.append(nn.Dropout(self.drop_rate))
        layers.append(nn.Linear(sizes[-1], num_classes))
        for layer in layers:
            if isinstance(layer, nn.Linear):
                nn.init.zeros_(layer.bias)
        return layers[0] if len(layers) == 1 else nn.Sequential(*layers)

    def forward_features(self, x: Tensor) -> Tensor:
        """Return the feature map, [B, C, H, W]; tokens as [B, C, N, 1]."""
        x = self._read(self.backbone, x)
        if self.layout == "tokens":
            return x[:, int(getattr(self.backbone, "num_prefix_tokens", 0)) :].mT.unsqueeze(-1)
        return x.permute(0, 3, 1, 2) if self.layout == "NHWC" else x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a feature map; return the vector or the logits."""
        if not self.pooled:
            return x
        x = self.pooling(x)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def forward_intermediates(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Return the backbone's intermediate maps, and its last one unless ``intermediates_only``; timm's arguments."""
        return self.backbone.forward_intermediates(x, *args, **kwargs)  # type: ignore[operator]  # timm's interface

    def prune_intermediate_layers(self, *args: Any, prune_head: bool = True, **kwargs: Any) -> Any:
        """Drop the backbone's layers after the last intermediate that is wanted; timm's arguments."""
        head = getattr(self.backbone, "head", None)
        if isinstance(head, nn.Identity):
            head.drop = nn.Dropout(0.0)  # timm's VGG reads the rate of the head it takes off
        kept = self.backbone.prune_intermediate_layers(  # type: ignore[operator]  # timm's interface
            *args, prune_head=False, **kwargs
        )
        if prune_head:
            self.reset_classifier(0, "")
        return kept

    @property
    def feature_info(self) -> list[dict[str, Any]]:
        """The backbone's stages, as timm lists them."""
        own = getattr(self.backbone, "feature_info", [])
        stages = [{**stage, "module": f"backbone.{stage['module']}"} for stage in getattr(own, "info", own)]
        if stages and self.pooling_recipe.get("last_stride") == 1:
            stages[-1]["reduction"] //= 2
        return stages

    def get_classifier(self, name_only: bool = False) -> nn.Module | str:
        """Return the classifier, or its name."""
        return "classifier" if name_only else self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leave the pooled vector. The pooling stays.

        ``global_pool=""`` with 0 classes leaves the feature map, as everywhere in timm; other values are an error.
        """
        if global_pool not in (None, "") or (global_pool == "" and num_classes != 0):
            rule = "the pooling is changed by attaching another one"
            argument = f"reset_classifier({num_classes}, global_pool={global_pool!r})"
            raise InvalidArgument(rule, argument=argument, hint='convsmith.pooling.attach(model, "average")')
        weight = next(self.backbone.parameters())
        self.num_classes, self.pooled = num_classes, global_pool is None
        self.classifier = self._classifier(num_classes).to(weight.device, weight.dtype)
        self.pooling_recipe = {**self.pooling_recipe, "num_classes": num_classes}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Pass on to the backbone."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]  # timm's interface

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns for layer-wise parameter groups: the backbone's, under its name here."""
        return prefixed_groups(self.backbone.group_matcher(coarse=coarse))  # type: ignore[operator]  # timm's interface

    def no_weight_decay(self) -> set[str]:
        """Return the backbone's parameters that decay must leave alone."""
        own: set[str] = getattr(self.backbone, "no_weight_decay", set)()
        return {f"backbone.{name}" for name in own}

    @checked
    def parameter_groups(self, lr: float, *, head_lr_mult: float | None = None) -> list[dict[str, Any]]:
        """Return two optimizer groups: the backbone at ``lr``, pooling and classifier at ``lr * head_lr_mult``.

        None takes the factor given to `attach`. The fine-tuning recipes use 5 (ResNet-50) and 20 (VGG-16).
        """
        factor = self.head_lr_mult if head_lr_mult is None else head_lr_mult
        head = [*self.pooling.parameters(), *self.classifier.parameters()]
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad], "lr": lr},
            {"params": [p for p in head if p.requires_grad], "lr": lr * factor},
        ]


def prefixed_groups(groups: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's group patterns for the same parameters under the name ``backbone``."""

    def moved(pattern: Any) -> Any:
        if isinstance(pattern, str):
            return r"^backbone\.(?:" + re.sub(r"(?<!\[)\^", "", pattern) + ")"
        return (moved(pattern[0]), *pattern[1:]) if isinstance(pattern, tuple) else pattern

    return {
        name: [moved(p) for p in patterns] if isinstance(patterns, list) else moved(patterns)
        for name, patterns in groups.items()
    }
