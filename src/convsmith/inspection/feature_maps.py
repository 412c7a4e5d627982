"""The last feature map of a classifier, before its pooling: timm's interface, and torchvision family by family."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, tensor
from convsmith.errors import InvalidArgument, refusing
from convsmith.inspection.modes import watching


def _stages(*names: str) -> Callable[[Any, Tensor], Tensor]:
    return functools.partial(_in_turn, names)


def _in_turn(names: tuple[str, ...], model: Any, x: Tensor) -> Tensor:
    for name in names:
        x = getattr(model, name)(x)
    return x


def _densenet(model: Any, x: Tensor) -> Tensor:
    return torch.relu(model.features(x))


def _swin(model: Any, x: Tensor) -> Tensor:
    return model.permute(model.norm(model.features(x)))


def _vision_transformer(model: Any, x: Tensor) -> Tensor:
    x = model.conv_proj(x).flatten(2).mT
    x = torch.cat([model.class_token.expand(x.shape[0], -1, -1), x], 1)
    return model.encoder(x)[:, 1:]


def _inception(model: Any, x: Tensor) -> Tensor:
    if model.transform_input:  # from ImageNet's mean and deviation by channel to 0.5 and 0.5
        mean, deviation = x.new_tensor([0.485, 0.456, 0.406]), x.new_tensor([0.229, 0.224, 0.225])
        x = (x * deviation[:, None, None] + (mean - 0.5)[:, None, None]) / 0.5
    for name, child in model.named_children():
        if name in ("AuxLogits", "aux1", "aux2", "avgpool", "dropout", "fc"):
            continue
        x = child(x)
    return x


def _timm(model: Any, x: Tensor) -> Tensor:
    return model.forward_features(x)


_FEATURES = _stages("features")
#: torchvision's model classes by name; each reads [B, C, H, W] or [B, N, C]
TORCHVISION: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "AlexNet": _FEATURES,
    "ConvNeXt": _FEATURES,
    "DenseNet": _densenet,
    "EfficientNet": _FEATURES,
    "GoogLeNet": _inception,
    "Inception3": _inception,
    "MNASNet": _stages("layers"),
    "MobileNetV2": _FEATURES,
    "MobileNetV3": _FEATURES,
    "RegNet": _stages("stem", "trunk_output"),
    "ResNet": _stages("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"),
    "ShuffleNetV2": _stages("conv1", "maxpool", "stage2", "stage3", "stage4", "conv5"),
    "SqueezeNet": _FEATURES,
    "SwinTransformer": _swin,
    "VGG": _FEATURES,
    "VisionTransformer": _vision_transformer,
}


@checked
def feature_fn(model: nn.Module) -> Callable[[nn.Module, Tensor], Tensor]:
    """Return the function ``(model, images) -> features`` of a timm or torchvision classifier.

    Raises `InvalidArgument` for a network that is neither.

    Examples:
        >>> feature_fn(model)(model, images).dim()
        4
    """
    if type(model).__module__.startswith("torchvision."):
        known = TORCHVISION.get(type(model).__name__)
        if known is not None:
            return known
        rule = "the features of this torchvision family are not known"
        hint = f"known: {', '.join(TORCHVISION)}; or take the same network from timm"
        raise InvalidArgument(rule, argument="model", given=type(model).__name__, hint=hint)
    if callable(getattr(model, "forward_features", None)):
        return _timm
    rule = "a classifier with forward_features (timm's interface) or one of torchvision's is needed"
    hint = "give the network a forward_features(images) method that returns [B, C, H, W], or use a timm name"
    raise InvalidArgument(rule, argument="model", given=type(model).__name__, hint=hint)


@checked
def channels_first(x: Tensor, channels: int, model: nn.Module) -> Tensor:
    """Return features as [B, C, H, W] from [B, C, H, W], [B, H, W, C] or tokens [B, N, C] without class tokens.

    Examples:
        >>> channels_first(torch.zeros(2, 4, 4, 8), 8, nn.Identity()).shape
        torch.Size([2, 8, 4, 4])
    """
    tensor("x", x, rank=(3, 4), floating=False, what="features [B, C, H, W], [B, H, W, C] or [B, N, C]")
    layout = feature_layout(x, channels, model)
    if layout == "tokens":
        return x[:, int(getattr(model, "num_prefix_tokens", 0)) :].mT.unsqueeze(-1)
    return x.permute(0, 3, 1, 2) if layout == "NHWC" else x


def feature_layout(x: Tensor, channels: int | None, model: nn.Module) -> str:
    """Return ``"tokens"``, ``"NHWC"`` or ``"NCHW"``, whichever the features of ``model`` are."""
    if x.dim() == 3:
        return "tokens"
    last = getattr(model, "output_fmt", "NCHW") == "NHWC" or (x.shape[1] != channels and x.shape[3] == channels)
    return "NHWC" if last else "NCHW"


def input_shape(model: nn.Module, size: tuple[int, int] | None = None) -> tuple[int, int, int]:
    """Return (channels, height, width) that the network takes: its own configuration, else 224 x 224."""
    first = next((m for m in model.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d)), None)
    channels = 3 if first is None else first.in_channels
    if size is not None:
        return (channels, *size)
    embed = getattr(model, "patch_embed", None)
    fixed = getattr(embed, "img_size", None)
    if fixed is not None:
        return (channels, int(fixed[0]), int(fixed[1]))
    config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    shape = config.get("input_size") or (channels, 224, 224)
    return (channels, int(shape[1]), int(shape[2]))


@checked
def infer_channels(
    model: nn.Module, read: Callable[[nn.Module, Tensor], Tensor], size: tuple[int, int] | None
) -> tuple[int, set[str]]:
    """Run one black image through the feature pass; return the channels and the top-level modules that it used.

    Raises `InvalidArgument` if the features are neither a map nor tokens.

    Examples:
        >>> channels, used = infer_channels(model, feature_fn(model), (16, 16))
    """
    used: set[str] = set()

    def watch(name: str) -> Callable[..., None]:
        return lambda *_: used.add(name)

    hooks = {name: watch(name.split(".")[0]) for name, _ in model.named_modules() if name}
    weight = next(model.parameters(), torch.zeros(()))
    image = torch.zeros(1, *input_shape(model, size), dtype=weight.dtype, device=weight.device)
    errors, hint = (RuntimeError, ValueError, AssertionError, IndexError), "say the image size: input_size=(C, H, W)"
    asked, rule = f"model {type(model).__name__} on {tuple(image.shape)}", "the feature pass failed on a black image"
    with refusing(rule, *errors, argument=asked, hint=hint), watching(model, hooks):
        x = read(model, image)
    if not isinstance(x, Tensor) or x.dim() not in (3, 4):
        given = f"{type(model).__name__}: " + (str(tuple(x.shape)) if isinstance(x, Tensor) else type(x).__name__)
        raise InvalidArgument("features are a map [B, C, H, W] or tokens [B, N, C]", argument="model", given=given)
    layout = feature_layout(x, getattr(model, "num_features", None), model)
    return x.shape[1 if layout == "NCHW" else -1], used
