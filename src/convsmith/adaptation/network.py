"""The network that is adapted: built from a name if it is one, and refused before training if it cannot work."""

from __future__ import annotations

import torch
from torch import nn

from convsmith import arguments
from convsmith.adaptation.inputs import Inputs
from convsmith.errors import InvalidArgument, refusing
from convsmith.inspection.features import classifier_of, extract_features, new_head
from convsmith.inspection.modes import copied, unwrap


def built(model: nn.Module | str, inputs: Inputs, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Return ``model`` with one logit per source class, and notes on what was changed.

    A name is built by timm, drawn by ``seed``. A module with another number of classes is copied and its last layer
    made anew, drawn by ``seed``: what it knew about its own classes is left out.
    """
    classes = len(inputs.classes)
    if isinstance(model, str):
        import timm

        channels = inputs.source.description.channels
        refused = refusing("no model has this name", RuntimeError, argument=f"model {model!r}")
        with refused, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(model, num_classes=classes, in_chans=channels), ()
    model = unwrap(arguments.module("model", model))  # a compiled module does not call hooks added later
    before = classifier_of(model).out_features
    if before == classes:
        return model, ()
    own = copied(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new_head(own, classes)
    return own, (
        f"the classifier is new: {classes} source classes where the network had {before}; with pretrained weights "
        "head_lr_mult=10 is usual",
    )


def check_model(model: nn.Module, inputs: Inputs) -> None:
    """Refuse a model that does not take the images, gives other logits than one per class, or gives NaN."""
    batch = inputs.source.fetch(range(min(2, len(inputs.source))))
    errors = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError)
    argument = f"images {tuple(batch.images.shape[1:])}"
    with refusing("the model does not take these images", *errors, argument=argument):
        seen = extract_features(model, [batch])
    if seen.logits.shape[1] != len(inputs.classes):
        given = f"{seen.logits.shape[1]} logits for {len(inputs.classes)} classes"
        raise InvalidArgument("the model gives one logit per source class", argument="model", given=given)
    if not bool(torch.isfinite(seen.features).all() & torch.isfinite(seen.logits).all()):
        raise InvalidArgument("the model's features are not finite before training", given="NaN or infinity")
