"""Damaged files made at run time: every kind of file we read, cut, emptied, retyped, and filled with something else."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import yaml

from tests.fuzz.calls import NETWORK
from tests.fuzz.outcomes import Outcome, outcome

ODD: tuple[Any, ...] = (None, "text", -1, 1e308, 10**30, [], {}, [None], True, "../../../etc/passwd", "\x00", {"a": {}})


def documents(value: Any, seed: int) -> Iterator[tuple[str, Any]]:
    """Yield a JSON document with one place replaced, one key gone, or one key too many, and what was done."""
    rng = random.Random(seed)
    places = list(_places(value))
    while True:
        changed = copy.deepcopy(value)
        way = rng.choice(("replace", "replace", "replace", "remove", "add", "whole"))
        if way == "whole" or not places:
            odd = rng.choice(ODD)
            yield f"the whole file is {odd!r}", odd
            continue
        *path, last = rng.choice(places)
        holder = changed
        for key in path:
            holder = holder[key]
        if way == "remove":
            del holder[last]
        elif way == "add" and isinstance(holder, dict):
            holder["unexpected"] = rng.choice(ODD)
        else:
            holder[last] = rng.choice(ODD)
        yield f"{way} {'/'.join(map(str, (*path, last)))}", changed


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from _places(item, (*path, key))


def broken_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Return what was done to the bytes of a file, and the result."""
    way = rng.choice(("cut", "empty", "not text", "flipped", "doubled"))
    if way == "cut":
        return "cut", data[: rng.randrange(max(1, len(data)))]
    if way == "empty":
        return way, b""
    if way == "not text":
        return way, b"\xff\xfe\x00" + data[:40]
    if way == "doubled":
        return way, data + data
    place = rng.randrange(max(1, len(data)))
    return f"byte {place} flipped", data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def sound_files(folder: Path) -> dict[str, tuple[Path, Callable[[Path], Any]]]:
    """Write one sound file of every kind; return, by kind, the file and how the library reads it."""
    from convsmith import compression, interpretation
    from convsmith.cli.shell import settings
    from convsmith.cli.verbs.train import Arguments
    from convsmith.models.storage import ModelRecipe, build, load_model, save_model

    folder.mkdir(parents=True, exist_ok=True)
    recipe = ModelRecipe("cs_resnet20", {"width": 4, "num_classes": 3, "in_chans": 3})
    model = build(recipe).eval()
    save_model(folder / "run", model, recipe)
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    plan = compression.plan_compression(model, "low-rank", example=images, keep_macs=0.8)
    plan.save(folder / "plan.json")
    routes = interpretation.find_routes(NETWORK, images, steps=2)
    routes.save(folder / "routes.safetensors")
    detector = interpretation.RouteDetector(seed=0)
    moved = interpretation.find_routes(NETWORK, images + 1, steps=2)
    detector.fit(routes, moved).save(folder / "detector.safetensors")
    (folder / "config.yaml").write_text("verb: train\nmodel: cs_resnet20\ndata: digits\nepochs: 3\nlr: 0.1\n")
    return {
        "model.json": (folder / "run" / "model.json", lambda path: load_model(path.parent)),
        "model.safetensors": (folder / "run" / "model.safetensors", lambda path: load_model(path.parent)),
        "plan.json": (folder / "plan.json", compression.Plan.load),
        "routes.safetensors": (folder / "routes.safetensors", interpretation.Routes.load),
        "detector.safetensors": (folder / "detector.safetensors", interpretation.RouteDetector.load),
        "config.yaml": (
            folder / "config.yaml",
            lambda path: settings.checked("train", Arguments, settings.text_of(path), where=str(path)),
        ),
    }


def run(folder: Path, cases: int, seed: int = 0) -> Iterator[Outcome]:
    """Damage, read, judge, mend; ``cases`` times over all kinds."""
    kinds = sound_files(folder)
    rng = random.Random(seed)
    sound = {name: path.read_bytes() for name, (path, _) in kinds.items()}
    edited = {
        name: documents(yaml.safe_load(data) if name.endswith(".yaml") else json.loads(data), seed)
        for name, data in sound.items()
        if name.endswith((".json", ".yaml"))
    }
    for number in range(cases):
        name = list(kinds)[number % len(kinds)]
        path, read = kinds[name]
        if name in edited and rng.random() < 0.7:
            words, value = next(edited[name])
            data = (yaml.safe_dump(value) if name.endswith(".yaml") else json.dumps(value)).encode()
        else:
            words, data = broken_bytes(sound[name], rng)
        path.write_bytes(data)
        try:
            yield outcome(f"{name}: {words}", lambda: read(path), (name, path.stem), lambda answer: None)  # noqa: B023
        finally:
            path.write_bytes(sound[name])
