"""Cheap features that a detector on routes must be compared with, in the shape of routes so that it reads them too."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked, one_of
from convsmith.data.batch import Batch
from convsmith.interpretation.ablation import apply_routes
from convsmith.interpretation.comparators import score_units
from convsmith.interpretation.find import find_routes, rows_at_once
from convsmith.interpretation.routes import Routes
from convsmith.interpretation.settings import route_settings
from convsmith.interpretation.sites import SiteRule
from convsmith.interpretation.stream import find_routes_from_loader, iterate_routes

NAMES = ("max-probability", "logits", "activations")


@checked
def baseline_features(
    model: nn.Module,
    images: Tensor,
    name: str,
    *,
    sites: str | SiteRule = "auto",
    batch_size: int | None = None,
    index: Tensor | None = None,
) -> Routes:
    """Return features of ``images`` in the shape of `Routes`, for `RouteDetector`.

    ``name``: ``"max-probability"`` one column, 1 - max softmax; ``"logits"`` the K logits, shifted to be non-negative
    (the smallest of each image is 0); ``"activations"`` mean absolute activation of every gated channel.

    Examples:
        >>> baseline_features(model, images, "logits").vector().shape
        torch.Size([8, 10])
    """
    one_of("baseline", name, NAMES)
    activations = score_units(model, images, "activation", sites=sites, batch_size=batch_size, index=index)
    if name == "activations":
        return activations
    if name == "max-probability":
        values = (1 - activations.confidence)[:, None]
    else:
        logits = apply_routes(model, images, {}, batch_size=batch_size)
        values = logits - logits.amin(1, keepdim=True)
    shut = torch.zeros(len(values), 1, dtype=torch.bool, device=values.device)
    flags = replace(activations.flags, closed=shut, image_share=(~shut).to(values), layers=(name,))
    settings = {"mode": name, "image_size": activations.settings["image_size"]}
    return replace(activations, gates={name: values}, flags=flags, settings=settings)


def extractor(
    model: nn.Module,
    feature: str,
    find: Mapping[str, Any],
    folder: str | Path | None = None,
    tick: Callable[[int, str], None] | None = None,
) -> Callable[[Batch, str], Routes]:
    """Return what finds ``"routes"`` (settings of `find_routes`) or a baseline's features of images with a name.

    Routes of finished batches are kept in ``folder`` under that name; ``tick``: told passes and a note.
    """
    search, sites = route_settings(find), find.get("sites", "auto")

    def features(batch: Batch, name: str) -> Routes:
        images, labels, index, seen = batch.images, batch.labels, batch.index, 0

        def told(done: int, _total: int, _note: str) -> None:
            nonlocal seen
            if tick is not None and done > seen:
                tick((done - seen) * (search.most_steps if feature == "routes" else 1), f"{feature} of {name}")
            seen = done

        if feature != "routes":
            found = baseline_features(model, images, feature, sites=sites, index=index)
        elif folder is None:
            found = find_routes(model, images, labels=labels, index=index, progress=told, **find)
        else:
            size = rows_at_once(images, find.get("batch_size"))
            batches = map(Batch, images.split(size), labels.split(size), index.split(size))
            place = Path(folder, f"routes-{name}")
            find_routes_from_loader(
                model, batches, place, settings=search, sites=sites, layers=find.get("layers"), storage="float32",
                progress=told, rank=0, world=1,
            )  # fmt: skip
            found = Routes.concatenate([*iterate_routes(place)]).to(images.device)  # in the order given
        told(len(images), 0, "")
        return found

    return features
