"""What enters the classifier of a network: features and logits of a batch or of a whole loader."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import spelled, wide
from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import evaluating
from convsmith.inspection.outputs import class_scores


@dataclass(frozen=True)
class Features:
    """One pass. Shapes: features [n, d], logits [n, K], labels [n] (-1 where there are none)."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)


def classifier_of(model: nn.Module) -> nn.Linear:
    """Return the linear layer that gives the logits: timm's classifier, or else the last linear layer of the model.

    Examples:
        >>> classifier_of(model).out_features
        10
    """
    getter = getattr(model, "get_classifier", None)
    found = getter() if callable(getter) else None
    if isinstance(found, nn.Linear):
        return found
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        rule = "features are what enters the linear layer that gives the logits, and there is none"
        raise InvalidArgument(rule, argument="model", given=type(model).__name__)
    return layers[-1]


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of a network's classifier layers: the last linear (or convolution) under each."""
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)]
    if not configured:
        return tuple(layers[-1:])
    heads = [configured] if isinstance(configured, str) else configured
    under = [[name for name in layers if name == head or name.startswith(f"{head}.")] for head in heads]
    return tuple(name for own in under for name in own[-1:])


def new_head(model: nn.Module, num_classes: int) -> str:
    """Give a network a fresh classifier: by timm's method, or in place of its last layer; return a note on it."""
    said = f"the classifier is new, {num_classes} classes: its weights are random"
    if hasattr(model, "reset_classifier"):
        model.reset_classifier(num_classes)  # type: ignore[operator]  # timm's interface
        return said
    names = head_names(model)
    if not names or not names[-1]:
        rule = "the classifier of this network is not known"
        hint = "build it with the number of classes that the weights have"
        raise InvalidArgument(rule, argument=f"num_classes={num_classes}", given=type(model).__name__, hint=hint)
    last: Any = model.get_submodule(names[-1])
    like = {"bias": last.bias is not None, "device": last.weight.device, "dtype": last.weight.dtype}
    if isinstance(last, nn.Linear):
        made: nn.Module = nn.Linear(last.in_features, num_classes, **like)
    else:
        made = nn.Conv2d(last.in_channels, num_classes, last.kernel_size, **like)
    model.set_submodule(names[-1], made)
    if hasattr(model, "num_classes"):
        model.num_classes = num_classes  # type: ignore[assignment]  # torchvision's SqueezeNet
    return said


def features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what enters the classifier, [B, d], and the logits, [B, K], in the model's own mode, with gradient.

    Examples:
        >>> features, logits = features_and_logits(model, images)
    """
    seen: list[Tensor] = []
    with classifier_of(model).register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        logits = class_scores(model(images))
    if len(seen) != 1 or seen[0].dim() != 2:
        given = f"{type(model).__name__}: {[tuple(s.shape) for s in seen]}, logits {tuple(logits.shape)}"
        raise InvalidArgument("the classifier must run once an image batch, on features [B, d]", given=given)
    return seen[0], logits


def extract_features(model: nn.Module, images: Tensor | Iterable[Any]) -> Features:
    """Return features, logits and labels of all images, in evaluation mode and without gradients, on the CPU.

    ``images``: a batch [B, C, H, W], or an iterable of such tensors, of ``(images, labels)`` or of objects with
    ``images`` and ``labels``. The result is float32 or, of a float64 network, float64. Raises `InvalidArgument` for no
    image, or a classifier that does not run once on features [B, d].

    Examples:
        >>> extract_features(model, images).logits.shape
        torch.Size([8, 10])
    """
    parameter = next(model.parameters(), None)
    features, logits, labels = [], [], []
    with evaluating(model), torch.no_grad():
        for item in [images] if isinstance(images, Tensor) else images:
            x, y = unpack_batch(item)
            f, z = features_and_logits(model, x if parameter is None else x.to(parameter.device))
            features.append(wide(f).cpu())
            logits.append(wide(z).cpu())
            labels.append(y.cpu())
    if not features:
        raise InvalidArgument("there is no image to take features of", argument="images", given="an empty iterable")
    return Features(torch.cat(features), torch.cat(logits), torch.cat(labels))


def unpack_batch(item: Any) -> tuple[Tensor, Tensor]:
    """Return images and labels [n] (-1 where there are none) of a tensor, a pair, or what has both by name."""
    images = getattr(item, "images", item[0] if isinstance(item, tuple | list) and item else item)
    labels = getattr(item, "labels", item[1] if isinstance(item, tuple | list) and len(item) > 1 else None)
    if not isinstance(images, Tensor):
        rule = "a batch is an image tensor, (images, labels), or has images and labels"
        raise InvalidArgument(rule, argument="images", given=spelled(item))
    return images, torch.full((len(images),), -1) if labels is None else torch.as_tensor(labels)
