"""Routes of more images than fit in memory: a compact file per batch, resumable, sharded over processes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convsmith.arguments import checked
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.files import read_json, write_json
from convsmith.inspection.features import unpack_batch
from convsmith.interpretation.detector import fingerprint
from convsmith.interpretation.find import Progress, describe, prepare, solve
from convsmith.interpretation.routes import Routes, route_files, saved_index
from convsmith.interpretation.settings import RouteSettings
from convsmith.interpretation.sites import SiteRule, plan_sites
from convsmith.training.machine import rank_and_world


@checked
def find_routes_from_loader(
    model: nn.Module,
    batches: Iterable[Any],
    folder: str | Path,
    *,
    settings: RouteSettings | None = None,
    sites: str | SiteRule = "auto",
    layers: Sequence[str] | None = None,
    storage: str = "uint8",
    rank: int | None = None,
    world: int | None = None,
    progress: Progress | None = None,
) -> Path:
    """Find the routes of every batch and write each to ``folder/routes-NNNNNN.safetensors``; return the folder.

    Memory holds one batch. `Routes.load(folder)` reads all files as one, `iterate_routes(folder)` one by one. Batches
    whose file is there are not searched again.

    Args:
        model: classifier in evaluation mode.
        batches: an iterable of `Batch`, of ``(images, labels)`` or of image tensors; the same in every process and
            in every run (no shuffling), so that batch numbers mean the same images.
        folder: where files go; a file is complete or absent.
        settings: how to search, default `RouteSettings()`.
        sites: see `plan_sites`.
        layers: see `plan_sites`.
        storage: see `Routes.save`; ``"uint8"`` is a byte per gate.
        rank: this process takes batches ``rank, rank + world, ...``; default torchrun's ``RANK``.
        world: number of processes; default torchrun's ``WORLD_SIZE``.
        progress: called with images done, 0 (unknown), a note.

    Raises:
        InvalidArgument: the folder holds routes of another network or of other batches, or found with other settings.

    Examples:
        >>> folder = find_routes_from_loader(model, loader, "routes", settings=RouteSettings(steps=5))
    """
    settings = settings or RouteSettings()
    here = rank_and_world()
    rank, world = here[0] if rank is None else rank, here[1] if world is None else world
    if not 0 <= rank < world:
        raise InvalidArgument("a rank lies between 0 and the number of processes", argument=f"rank {rank} of {world}")
    folder = Path(folder)
    plan = None
    first = 0
    for number, item in enumerate(batches):
        images, labels = unpack_batch(item)
        before, first = first, first + len(images)
        index = item.index if isinstance(item, Batch) else torch.arange(before, first)
        path = folder / f"routes-{number:06d}.safetensors"
        if number % world != rank:
            continue
        if plan is None:
            plan = plan_sites(*prepare(model, images), sites, layers)
            layers_and_network = {"layers": [site.name for site in plan.sites], "network": fingerprint(model)}
            _check_settings(folder, {**describe(plan, settings, images), **layers_and_network})
        if path.exists():
            if not torch.equal(saved_index(path), index.cpu()):
                rule = "the folder holds routes of other batches"
                hint = "the same images and batch size, or another folder"
                raise InvalidArgument(rule, argument="batches", given=str(path), hint=hint)
            continue
        inner, images = prepare(model, images)
        routes = solve(inner, images, plan, settings, len(images), labels=labels, index=index, first=before)
        routes.save(path, storage=storage)
        if progress is not None:
            progress(first, 0, "images")
    return folder


@checked
def iterate_routes(folder: str | Path) -> Iterator[Routes]:
    """Yield the routes of one file after another, in the order of the batches.

    Examples:
        >>> folder = find_routes_from_loader(model, loader, "routes", settings=RouteSettings(steps=5))
        >>> images = sum(len(routes) for routes in iterate_routes(folder))
    """
    return map(Routes.load, route_files(folder))


def _check_settings(folder: Path, asked: dict[str, Any]) -> None:
    record = folder / "settings.json"
    if not record.exists():
        write_json(record, asked)
    there = read_json(record, "the settings of routes")
    if there != json.loads(json.dumps(asked)):
        rule, hint = "the folder holds routes of another network or found with other settings", "choose another folder"
        raise InvalidArgument(rule, argument=asked, given=there, hint=hint)
