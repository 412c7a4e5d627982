"""Features and logits of any classifier, and one look at both domains."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from convsmith.data.batch import DomainBatch
from convsmith.errors import InvalidArgument

Normalisation = Literal["joint", "separate"]


def classifier_of(model: nn.Module) -> nn.Linear:
    """Return the linear layer that gives the logits: timm's classifier, or else the last linear layer of the model."""
    getter = getattr(model, "get_classifier", None)
    found = getter() if callable(getter) else None
    if isinstance(found, nn.Linear):
        return found
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if not layers:
        raise InvalidArgument(
            "adaptation needs a model whose logits come from a linear layer", given=type(model).__name__
        )
    return layers[-1]


def features_and_logits(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what enters the classifier, [B, d], and the logits, [B, K]."""
    seen: list[Tensor] = []
    handle = classifier_of(model).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    try:
        logits = model(images)
    finally:
        handle.remove()
    if len(seen) != 1 or seen[0].dim() != 2 or logits.dim() != 2:
        raise InvalidArgument(
            "the classifier must run once an image batch, on features [B, d]",
            given=f"{type(model).__name__}: {[tuple(s.shape) for s in seen]}, logits {tuple(logits.shape)}",
        )
    return seen[0], logits


@dataclass(frozen=True)
class Look:
    """Both domains through the network. Shapes: features [n, d], logits [n, K], labels and index [n]."""

    source_features: Tensor
    source_logits: Tensor
    source_labels: Tensor
    source_index: Tensor
    target_features: Tensor
    target_logits: Tensor


def look(model: nn.Module, batch: DomainBatch, normalisation: Normalisation = "joint") -> Look:
    """Return features and logits of both domains.

    ``"joint"`` runs source and target as one batch, so batch-norm layers see their mixture (SAN, PADA); ``"separate"``
    runs them apart, each normalised by its own batch, and the running statistics are the target's.
    """
    n = len(batch.source)
    if normalisation == "joint":
        features, logits = features_and_logits(model, torch.cat([batch.source.images, batch.target.images]))
        parts = (features[:n], logits[:n], features[n:], logits[n:])
    else:
        with _running_statistics_kept(model):
            source = features_and_logits(model, batch.source.images)
        parts = (*source, *features_and_logits(model, batch.target.images))
    return Look(parts[0], parts[1], batch.source.labels, batch.source.index, parts[2], parts[3])


@contextmanager
def _running_statistics_kept(model: nn.Module) -> Iterator[None]:
    layers = [(m, m.momentum) for m in model.modules() if isinstance(m, _BatchNorm)]
    for layer, _ in layers:
        layer.momentum = 0.0
    try:
        yield
    finally:
        for layer, momentum in layers:
            layer.momentum = momentum
