"""The network that is adapted: built from a name if it is one, and refused before training if it cannot work."""

from __future__ import annotations

import torch
from torch import nn

from convsmith.adaptation.inputs import Inputs
from convsmith.errors import InvalidArgument
from convsmith.inspection.features import classifier_of, extract_features


def built(model: nn.Module | str, inputs: Inputs, seed: int) -> nn.Module:
    """Return ``model``, or the timm network of this name with one logit per source class, drawn by ``seed``."""
    if isinstance(model, nn.Module):
        return model
    import timm

    torch.manual_seed(seed)
    channels = inputs.source.description.channels
    try:
        return timm.create_model(model, num_classes=len(inputs.classes), in_chans=channels)
    except RuntimeError as error:
        raise InvalidArgument("no model has this name", argument="model", given=repr(model)) from error


def check_model(model: nn.Module, inputs: Inputs) -> None:
    """Refuse a model that does not take the images, has other classes, or gives NaN."""
    out = classifier_of(model).out_features
    if out != len(inputs.classes):
        raise InvalidArgument(
            "the model gives one logit per source class",
            argument=f"{len(inputs.classes)} classes",
            given=f"{out} logits",
            hint=f"create it with num_classes={len(inputs.classes)}",
        )
    batch = inputs.source.fetch(range(min(2, len(inputs.source))))
    try:
        seen = extract_features(model, [batch])
    except RuntimeError as error:
        raise InvalidArgument(
            "the model does not take these images",
            argument=f"images {tuple(batch.images.shape[1:])}",
            given=str(error)[:200],
        ) from error
    if not bool(torch.isfinite(seen.features).all() & torch.isfinite(seen.logits).all()):
        raise InvalidArgument("the model's features are not finite before training", given="NaN or infinity")
