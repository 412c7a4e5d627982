"""What enters the classifier of a network: features and logits of a batch or of a whole loader."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, spelled, wide
from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import evaluating, unwrap
from convsmith.inspection.outputs import class_scores


@dataclass(frozen=True)
class Features:
    """One pass. Shapes: features [n, d], logits [n, K], labels [n] (-1 where there are none)."""

    features: Tensor
    logits: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.features)


@checked
def classifier_of(model: nn.Module) -> nn.Linear:
    """Return the linear layer that gives the logits: the first of `head_names`, in whatever wrapper.

    Examples:
        >>> classifier_of(model).out_features
        10
    """
    model = unwrap(model)
    names = head_names(model)
    found = model.get_submodule(names[0]) if names else None
    if not isinstance(found, nn.Linear):
        rule = "features are what enters the linear layer that gives the logits, and there is none"
        raise InvalidArgument(rule, argument="model", given=type(model).__name__)
    return found


def head_names(model: nn.Module) -> tuple[str, ...]:
    """Return the dotted names of a network's classifier layers: the last linear (or convolution) under each.

    Where timm's configuration names none, it is the last linear layer, in a network without one the last convolution.
    """
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("classifier")
    if not configured:
        found = {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
        return tuple(([name for name in found if isinstance(found[name], nn.Linear)] or list(found))[-1:])
    names: list[str] = []
    for head in [configured] if isinstance(configured, str) else configured:
        with suppress(AttributeError):  # a name that this network does not have
            under = model.get_submodule(head).named_modules(prefix=head)
            names += [name for name, module in under if isinstance(module, nn.Linear | nn.Conv2d)][-1:]
    return tuple(names)


def class_count(model: nn.Module) -> int | None:
    """Return the number of outputs: what the network says, else what its last layer has."""
    said = getattr(model, "num_classes", None)
    if isinstance(said, int):
        return said
    layers = [model.get_submodule(name) for name in head_names(model)]
    sizes = [layer.out_features if isinstance(layer, nn.Linear) else layer.out_channels for layer in layers]
    return sizes[-1] if sizes else None  # type: ignore[return-value]  # head_names gives these two kinds alone


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


@checked
def features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what enters the classifier, [B, d], and the logits, [B, K], in the model's own mode, with gradient.

    Wrappers are looked through. Raises `InvalidArgument` for a classifier that does not run once on features [B, d].

    Examples:
        >>> features, logits = features_and_logits(model, images)
    """
    model, seen = unwrap(model), list[Tensor]()
    with classifier_of(model).register_forward_pre_hook(lambda _, args: seen.append(args[0])):
        logits = class_scores(model(images))
    if len(seen) != 1 or seen[0].dim() != 2:
        given = f"{type(model).__name__}: {[tuple(s.shape) for s in seen]}, logits {tuple(logits.shape)}"
        raise InvalidArgument("the classifier must run once an image batch, on features [B, d]", given=given)
    return seen[0], logits


@checked
def extract_features(model: nn.Module, images: Tensor | Iterable[Any]) -> Features:
    """Return features, logits and labels of all images, in evaluation mode and without gradients, on the CPU.

    ``images``: a batch [B, C, H, W], or an iterable of such tensors, of ``(images, labels)`` or of objects with
    ``images`` and ``labels``; they take the dtype of the model's parameters. The result is float32 or, of a float64
    network, float64. Raises `InvalidArgument` for no image, or as `features_and_logits`.

    Examples:
        >>> extract_features(model, images).logits.shape
        torch.Size([8, 10])
    """
    like = next((p for p in model.parameters() if p.is_floating_point()), None)
    features, logits, labels = [], [], []
    with evaluating(model), torch.no_grad():
        for item in [images] if isinstance(images, Tensor) else images:
            x, y = unpack_batch(item)
            if like is not None:
                x = x.to(like.device, like.dtype if x.is_floating_point() else None)
            f, z = features_and_logits(model, x)
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
