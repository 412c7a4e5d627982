"""Give any timm or torchvision classifier another global pooling and a new classifier."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_type_hints

from torch import Tensor, nn

from convsmith.errors import InvalidArgument, close_matches
from convsmith.inspection.feature_maps import channels_first, feature_fn, infer_channels
from convsmith.pooling.inputs import positive
from convsmith.pooling.last_stage import set_last_stride
from convsmith.pooling.layers import POOLINGS, Pooling

KEEPS_CHANNELS = ("average",)

#: top-level modules that belong to a head when the feature pass does not call them
HEAD_NAMES = (
    "attn_pool",
    "avgpool",
    "classifier",
    "conv_head",
    "fc",
    "fc_norm",
    "final_conv",
    "flatten",
    "global_pool",
    "head",
    "head_dist",
    "head_drop",
    "heads",
    "norm_head",
    "pre_logits",
)


class PooledClassifier(nn.Module):
    """A backbone, a `Pooling` and a classifier; speaks timm's interface.

    ``forward_features`` gives the map [B, C, H, W] that enters the pooling, ``forward_head(..., pre_logits=True)`` the
    pooled vector, ``reset_classifier`` a new classifier on the same pooling. ``pooling_recipe`` is the JSON-able
    dictionary with which ``attach(backbone, **pooling_recipe)`` builds the same structure again.
    """

    def __init__(
        self,
        backbone: nn.Module,
        pooling: Pooling,
        num_classes: int,
        *,
        hidden: Sequence[int] = (),
        drop_rate: float = 0.0,
        head_factor: float = 1.0,
        recipe: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, self.pooling = backbone, pooling
        self._read = feature_fn(backbone)
        self.num_features = self.head_hidden_size = pooling.out_features
        self.hidden, self.drop_rate = tuple(hidden), float(drop_rate)
        self.head_factor = float(head_factor)
        self.pooling_recipe = dict(recipe or {})
        self.num_classes = num_classes
        self.classifier = self._classifier(num_classes)

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
        return channels_first(self._read(self.backbone, x), self.pooling.in_channels, self.backbone)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Pool a feature map; return the vector or the logits."""
        x = self.pooling(x)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [B, num_classes]."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """Return the classifier."""
        return self.classifier

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Replace the classifier by a fresh one; 0 classes leave the pooled vector. The pooling stays."""
        if global_pool is not None:
            raise InvalidArgument(
                "the pooling is changed by attaching another one",
                argument=f"reset_classifier(global_pool={global_pool!r})",
                hint='convsmith.pooling.attach(model, "average")',
            )
        weight = next(self.backbone.parameters())
        self.num_classes = num_classes
        self.classifier = self._classifier(num_classes).to(weight.device, weight.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Pass on to the backbone."""
        self.backbone.set_grad_checkpointing(enable)  # type: ignore[operator]  # timm's interface

    @property
    def pretrained_cfg(self) -> Any:
        """The backbone's data configuration (input size, mean, std)."""
        return getattr(self.backbone, "pretrained_cfg", {})

    @property
    def default_cfg(self) -> Any:
        """The same, under timm's older name."""
        return self.pretrained_cfg

    def parameter_groups(self, lr: float, *, head_factor: float | None = None) -> list[dict[str, Any]]:
        """Return two optimizer groups: the backbone at ``lr``, pooling and classifier at ``lr * head_factor``.

        None takes the factor given to `attach`. The fine-tuning recipes use 5 (ResNet-50) and 20 (VGG-16).
        """
        factor = self.head_factor if head_factor is None else head_factor
        head = [*self.pooling.parameters(), *self.classifier.parameters()]
        return [
            {"params": [p for p in self.backbone.parameters() if p.requires_grad], "lr": lr},
            {"params": [p for p in head if p.requires_grad], "lr": lr * factor},
        ]


def attach(
    model: nn.Module,
    pooling: str = "isqrt-cov",
    *,
    dim: int | None = 256,
    num_classes: int | None = None,
    last_stride: int | None = None,
    hidden: Sequence[int] = (),
    drop_rate: float = 0.0,
    head_factor: float = 1.0,
    options: Mapping[str, Any] | None = None,
    input_size: tuple[int, int] | None = None,
) -> PooledClassifier:
    """Return ``model`` with its global pooling and classifier replaced; its feature layers are used as they are.

    Args:
        model: any timm or torchvision classifier, maps or tokens (class tokens are left out); or the result of an
            earlier call, whose backbone is used.
        pooling: a name of `convsmith.pooling.available`.
        dim: channels after the 1 x 1 reduction in front of the pooling; None pools all channels. ``"average"`` always
            keeps all.
        num_classes: of the new classifier; None: as many as the model had.
        last_stride: 1 sets the last stage to stride 1 where the family is known; None leaves it.
        hidden: sizes of fully connected layers before the last one, with ReLU (VGG-16: 4096, 4096).
        drop_rate: dropout after each hidden layer, or before the last layer without hidden ones.
        head_factor: learning rate of pooling and classifier in multiples of the backbone's (`parameter_groups`).
        options: more arguments of the pooling (``{"iterations": 3}``).
        input_size: (height, width) for the one black image that finds the channels; None: the model's configuration.

    Raises `InvalidArgument` for an unknown pooling or option, a network whose features cannot be found, no number of
    classes, or a family whose last stage is not known. The result's ``pooling_recipe`` repeats the call.
    """
    entry = POOLINGS.entry(pooling)
    if isinstance(model, PooledClassifier):
        num_classes = model.num_classes if num_classes is None else num_classes
        model = model.backbone
    classes = getattr(model, "num_classes", None) if num_classes is None else num_classes
    if classes is None:
        classes = _last_linear(model)
    if not isinstance(classes, int) or classes < 0:
        raise InvalidArgument("the number of classes is needed", argument="attach", given=classes, hint="num_classes=N")
    if pooling in KEEPS_CHANNELS and dim not in (256, None):
        raise InvalidArgument(f"{pooling} pooling keeps all channels", argument=f"dim={dim}", hint="leave dim out")
    settings = dict(options or {})
    _check_options(pooling, settings)
    hidden = tuple(positive("hidden", size) for size in hidden)
    if not 0.0 <= drop_rate < 1.0:
        raise InvalidArgument("a share from 0 to below 1", argument="drop_rate", given=drop_rate)
    if not head_factor > 0:
        raise InvalidArgument("a factor above 0", argument="head_factor", given=head_factor)

    if last_stride is not None:
        set_last_stride(model, last_stride)
    channels, used = infer_channels(model, feature_fn(model), input_size)
    remove_head(model, used)
    head = entry.value(channels, dim=None if pooling in KEEPS_CHANNELS else dim, **settings)
    weight = next(model.parameters())
    recipe: dict[str, Any] = {
        "pooling": pooling,
        "dim": dim,
        "num_classes": classes,
        "last_stride": last_stride,
        "hidden": list(hidden),
        "drop_rate": drop_rate,
        "head_factor": head_factor,
        "options": settings,
        "input_size": None if input_size is None else list(input_size),
    }
    attached = PooledClassifier(
        model, head, classes, hidden=hidden, drop_rate=drop_rate, head_factor=head_factor, recipe=recipe
    )
    attached.train(model.training)
    return attached.to(weight.device, weight.dtype)


def pooling_options(name: str) -> dict[str, Any]:
    """Return what ``options`` of `attach` may hold for the pooling ``name``: each option with its annotated type."""
    maker = POOLINGS.entry(name).value.__init__
    hints = get_type_hints(maker)
    known = [p for p in inspect.signature(maker).parameters if p not in ("self", "in_channels", "dim")]
    return {option: hints[option] for option in known}


def _check_options(name: str, options: Mapping[str, Any]) -> None:
    known = pooling_options(name)
    unknown = sorted(set(options) - set(known))
    if unknown:
        hint = close_matches(unknown[0], known) if known else "it has none"
        raise InvalidArgument(
            f"{name} takes no such option", argument="options", given=", ".join(map(repr, unknown)), hint=hint
        )


def _last_linear(model: nn.Module) -> int | None:
    """Return the output size of the last fully connected (or, as in SqueezeNet, convolution) layer."""
    sizes = [m.out_features for m in model.modules() if isinstance(m, nn.Linear)]
    if sizes:
        return sizes[-1]
    convolutions = [m.out_channels for m in model.modules() if isinstance(m, nn.Conv2d)]
    return convolutions[-1] if convolutions else None


def remove_head(model: nn.Module, used: set[str]) -> None:
    """Replace the head's modules, those that the feature pass does not use, by identities: their weights are gone."""
    for name in HEAD_NAMES:
        if name not in used and isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, nn.Identity())
    for name in ("AuxLogits", "aux1", "aux2"):
        if name not in used and isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, None)
