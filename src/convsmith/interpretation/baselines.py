"""Cheap features that a detector on routes must be compared with, in the shape of routes so that it reads them too."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from convsmith.errors import InvalidArgument, close_matches
from convsmith.interpretation.comparators import score_units
from convsmith.interpretation.routes import Routes
from convsmith.interpretation.sites import SiteRule

NAMES = ("max-probability", "logits", "activations")


def baseline_features(
    model: nn.Module,
    images: Tensor,
    name: str,
    *,
    sites: str | SiteRule = "auto",
    batch_size: int | None = None,
    index: Tensor | None = None,
    labels: Tensor | None = None,
) -> Routes:
    """Return features of ``images`` in the shape of `Routes`, for `RouteDetector`.

    ``name``: ``"max-probability"`` one column, 1 - max softmax; ``"logits"`` the K logits, shifted to be non-negative
    (the smallest of each image is 0); ``"activations"`` mean absolute activation of every gated channel.

    Examples:
        >>> baseline_features(model, images, "logits").vector().shape
        torch.Size([8, 10])
    """
    if name not in NAMES:
        raise InvalidArgument(
            "no baseline has this name", argument="baseline", given=repr(name), hint=close_matches(name, NAMES)
        )
    activations = score_units(
        model, images, "activation", sites=sites, batch_size=batch_size, index=index, labels=labels
    )
    if name == "activations":
        return activations
    if name == "max-probability":
        values = (1 - activations.confidence)[:, None]
    else:
        from convsmith.interpretation.ablation import apply_routes

        logits = apply_routes(model, images, {}, batch_size=batch_size)
        values = logits - logits.amin(1, keepdim=True)
    shut = torch.zeros(len(values), 1, dtype=torch.bool, device=values.device)
    flags = replace(activations.flags, closed=shut, image_share=(~shut).to(values), layers=(name,))
    return replace(activations, gates={name: values}, flags=flags, settings={"mode": name})
