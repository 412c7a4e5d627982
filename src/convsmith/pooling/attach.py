"""Give any timm or torchvision classifier another global pooling and a new classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.inspection.feature_maps import feature_fn, feature_layout, infer_channels, input_shape
from convsmith.inspection.features import class_count
from convsmith.inspection.modes import copied, unwrap
from convsmith.pooling.classifier import ATTACHED, PooledClassifier
from convsmith.pooling.last_stage import set_last_stride
from convsmith.pooling.layers import POOLINGS
from convsmith.registry import check_settings, setting_types

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


@arguments.checked
def attach(
    model: nn.Module,
    pooling: str = "isqrt-cov",
    *,
    dim: int | None = 256,
    num_classes: int | None = None,
    last_stride: int | None = None,
    hidden: Sequence[int] = (),
    drop_rate: float = 0.0,
    head_lr_mult: float = 1.0,
    input_size: Sequence[int] | None = None,
    **options: Any,
) -> PooledClassifier:
    """Return a copy of ``model`` with its global pooling and classifier replaced; ``model`` stays as it was.

    Args:
        model: any timm or torchvision classifier, maps or tokens (class tokens are left out), in whatever wrapper; or
            the result of an earlier call, whose backbone is used.
        pooling: a name of `convsmith.pooling.available`.
        dim: channels after the 1 x 1 reduction in front of the pooling; None pools all channels. ``"average"`` always
            keeps all.
        num_classes: of the new classifier; None: as many as the model had.
        last_stride: 1 sets the last stage to stride 1 where the family is known; None leaves it.
        hidden: sizes of fully connected layers before the last one, with ReLU (VGG-16: 4096, 4096).
        drop_rate: dropout after each hidden layer, or before the last layer without hidden ones.
        head_lr_mult: learning rate of pooling and classifier in multiples of the backbone's (`parameter_groups`).
        input_size: (channels, height, width) of the one black image that finds the channels; None: the model's own.
        options: more arguments of the pooling (``iterations=3``); `pooling_options` lists them.

    Raises `InvalidArgument` for an unknown pooling or option, a network whose features cannot be found, no number of
    classes, or a family whose last stage is not known. The result's ``pooling_recipe`` repeats the call.

    Examples:
        >>> sharper = attach(model, "isqrt-cov", dim=16, input_size=(3, 16, 16))
    """
    entry = POOLINGS.entry(pooling)
    model, stride = unwrap(model), None  # that the backbone was built with already
    if isinstance(model, PooledClassifier):
        num_classes = model.num_classes if num_classes is None else num_classes
        stride = model.pooling_recipe.get("last_stride")
        model = model.backbone
    classes = class_count(model) if num_classes is None else num_classes
    if classes is None or classes < 0:
        raise InvalidArgument("the number of classes is needed", argument="attach", given=classes, hint="num_classes=N")
    keeps = not entry.traits.get("reduces", True)
    if keeps and dim not in (256, None):
        raise InvalidArgument(f"{pooling} pooling keeps all channels", argument=f"dim={dim}", hint="leave dim out")
    check_settings(pooling, options, pooling_options(pooling))
    hidden = tuple(arguments.integer("hidden", size, least=1) for size in hidden)
    arguments.number("drop_rate", drop_rate, least=0, below=1)
    arguments.number("head_lr_mult", head_lr_mult, above=0)
    recipe: dict[str, Any] = {
        "pooling": pooling,
        "dim": dim,
        "num_classes": classes,
        "last_stride": stride if last_stride is None else last_stride,
        "hidden": list(hidden),
        "drop_rate": drop_rate,
        "head_lr_mult": head_lr_mult,
        "input_size": None if input_size is None else list(input_size),
        **options,
    }
    read, training = feature_fn(model), model.training
    model = copied(model)
    if last_stride not in (None, stride):
        set_last_stride(model, last_stride)
    seen: list[Tensor] = []

    def watched(network: nn.Module, images: Tensor) -> Tensor:
        seen.append(read(network, images))
        return seen[-1]

    channels, used = infer_channels(model, watched, _spatial(model, input_size))
    remove_head(model, used)
    head = entry.value(channels, dim=None if keeps else dim, **options)
    attached = PooledClassifier(
        model,
        head,
        classes,
        hidden=hidden,
        drop_rate=drop_rate,
        head_lr_mult=head_lr_mult,
        layout=feature_layout(seen[-1], channels, model),
        recipe=recipe,
    )
    _record(attached)
    attached.train(training)
    weight = next(model.parameters())
    return attached.to(weight.device, weight.dtype)


def _record(attached: PooledClassifier) -> None:
    """Tell timm how to build this network again, if it built the backbone: its ``save_for_hf`` asks."""
    import timm.models

    name = attached.pretrained_cfg.get("architecture")
    if name is None:
        return
    recipe = {key: value for key, value in attached.pooling_recipe.items() if key != "num_classes"}
    # timm's factory keeps what it built a network from under this name; it has no function that others could call
    attached._model_args = {
        "backbone": name,
        "backbone_args": timm.models.get_model_args(attached.backbone),
        "pooling": recipe,
    }
    attached.pretrained_cfg["architecture"] = ATTACHED


def _spatial(model: nn.Module, input_size: Sequence[int] | None) -> tuple[int, int] | None:
    if input_size is None:
        return None
    channels = input_shape(model)[0]
    if len(input_size) != 3 or input_size[0] != channels:
        rule = "an input size has channels, height and width"
        hint = f"input_size=({channels}, {', '.join(str(side) for side in tuple(input_size)[-2:])})"
        raise InvalidArgument(rule, argument="input_size", given=tuple(input_size), hint=hint)
    return (input_size[1], input_size[2])


@arguments.checked
def pooling_options(name: str) -> dict[str, Any]:
    """Return what ``options`` of `attach` may hold for the pooling ``name``: each option with its annotated type.

    Examples:
        >>> "iterations" in pooling_options("isqrt-cov")
        True
    """
    types = setting_types(POOLINGS.entry(name).value)
    return {option: kind for option, kind in types.items() if option != "dim"}


def remove_head(model: nn.Module, used: set[str]) -> None:
    """Replace the head's modules, those that the feature pass does not use, by identities: their weights are gone."""
    for name in HEAD_NAMES:
        if name not in used and isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, nn.Identity())
    for name in ("AuxLogits", "aux1", "aux2"):
        if name not in used and isinstance(getattr(model, name, None), nn.Module):
            setattr(model, name, None)
