"""The network that is adapted: built from a name if it is one, and refused before training if it cannot work."""

from __future__ import annotations

import copy

import torch
from torch import nn

from convsmith import arguments
from convsmith.adaptation.inputs import Inputs
from convsmith.errors import ConvsmithError, InvalidArgument
from convsmith.inspection.features import classifier_of, extract_features


def built(model: nn.Module | str, inputs: Inputs, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Return ``model`` with one logit per source class, and notes on what was changed.

    A name is built by timm, drawn by ``seed``. A module with another number of classes is copied and its last layer
    made anew, drawn by ``seed``: what it knew about its own classes is left out.
    """
    classes = len(inputs.classes)
    if isinstance(model, str):
        import timm

        torch.manual_seed(seed)
        channels = inputs.source.description.channels
        try:
            return timm.create_model(model, num_classes=classes, in_chans=channels), ()
        except RuntimeError as error:
            raise InvalidArgument("no model has this name", argument="model", given=repr(model)) from error
    before = classifier_of(arguments.module("model", model)).out_features
    if before == classes:
        return model, ()
    copied = copy.deepcopy(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        _new_head(copied, classes)
    return copied, (
        f"the classifier is new: {classes} source classes where the network had {before}; with pretrained weights "
        "head_lr_mult=10 is usual",
    )


def _new_head(model: nn.Module, classes: int) -> None:
    """Give ``model`` a classifier of ``classes``: by timm's method, or in place of its last linear layer."""
    reset = getattr(model, "reset_classifier", None)
    if callable(reset):
        reset(classes)
        return
    old = classifier_of(model)
    fresh = nn.Linear(
        old.in_features, classes, bias=old.bias is not None, device=old.weight.device, dtype=old.weight.dtype
    )
    name = next(name for name, module in model.named_modules() if module is old)
    parent, _, leaf = name.rpartition(".")
    if not leaf:
        raise InvalidArgument("a network is more than its classifier", argument="model", given=type(model).__name__)
    setattr(model.get_submodule(parent), leaf, fresh)


def check_model(model: nn.Module, inputs: Inputs) -> None:
    """Refuse a model that does not take the images, gives other logits than one per class, or gives NaN."""
    batch = inputs.source.fetch(range(min(2, len(inputs.source))))
    try:
        seen = extract_features(model, [batch])
    except ConvsmithError:
        raise
    except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError) as error:
        rule, argument = "the model does not take these images", f"images {tuple(batch.images.shape[1:])}"
        raise InvalidArgument(rule, argument=argument, given=str(error)[:200]) from error
    if seen.logits.shape[1] != len(inputs.classes):
        given = f"{seen.logits.shape[1]} logits for {len(inputs.classes)} classes"
        raise InvalidArgument("the model gives one logit per source class", argument="model", given=given)
    if not bool(torch.isfinite(seen.features).all() & torch.isfinite(seen.logits).all()):
        raise InvalidArgument("the model's features are not finite before training", given="NaN or infinity")
