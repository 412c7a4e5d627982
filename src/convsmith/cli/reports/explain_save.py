"""Routes of ``convsmith explain --save``: kept part by part, so that an interrupted run goes on where it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from convsmith.errors import InvalidArgument
from convsmith.files import write_text
from convsmith.interpretation import Routes, find_routes_from_loader
from convsmith.interpretation.detector import fingerprint
from convsmith.interpretation.find import rows_at_once
from convsmith.interpretation.settings import route_settings
from convsmith.training import rank_and_world
from convsmith.training.machine import gather

#: written into the folder of parts: which network and images they belong to
OWNER = "belongs-to.json"


def find_and_save(
    file: str,
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    progress: Callable[[int, int, str], None],
    settings: dict[str, Any],
) -> Routes | None:
    """Find routes batch by batch into ``FILE.parts``, join them into ``file``, remove the parts; return all routes.

    Parts that are there already, of the same network, images and settings, are not searched again. The processes of a
    launcher share the batches; the first one joins them, the others get None.
    """
    rank, world = rank_and_world()
    parts = Path(file + ".parts")
    size = rows_at_once(images, settings["batch_size"])
    claim(parts, json.dumps({"digest": fingerprint(model, images, labels), "batch size": size}), f"--save {file}")
    batches = zip(images.split(size), labels.split(size), strict=True)
    try:
        find_routes_from_loader(
            model,
            batches,
            parts,
            settings=route_settings(settings),
            sites=settings["sites"],
            storage="float32",
            progress=lambda done, _total, _note: progress(done, len(images), "routes"),
            rank=rank,
            world=world,
        )
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"{parts} keeps the routes found so far; the same command goes on from there") from None
    gather(None, world)  # all parts are there
    if rank:
        return None
    routes = Routes.load(parts).to(next(model.parameters()).device)
    routes.save(file)
    shutil.rmtree(parts)
    return routes


def claim(parts: Path, owner: str, argument: str) -> Path:
    """Make a folder of parts that belong to ``owner``, or find it; refuse another's."""
    parts.mkdir(parents=True, exist_ok=True)
    record = parts / OWNER
    if record.exists() and record.read_text() != owner:
        rule = "an interrupted run has left routes of another network, of other images or batches here"
        hint = "remove that folder, or choose another place"
        raise InvalidArgument(rule, argument=argument, given=str(parts), hint=hint)
    write_text(record, owner)
    return parts
