"""``convsmith demo``: run everything once on real digits and write a report.

A part is a file ``cli/demo_<part>.py`` with ``TITLE`` and ``run(context) -> None``. It reads the trained network and
the images from the context, writes report sections into ``context.folder`` (numbers 10-19 belong to training, 20-24
interleaved, 25-29 compress, 30-39 pooling, 40-49 routes, 50-59 adapt, 60-69 together), may add to
``context.headline``, and takes under 45 seconds on two cores.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.cli.shell import run_folder, terminal
from convsmith.cli.shell.options import Computation, option
from convsmith.errors import InvalidArgument, MissingExtra, close_matches

if TYPE_CHECKING:
    from torch import nn

    from convsmith.data import ImageData
    from convsmith.models.storage import ModelRecipe

EXAMPLES = ("demo", "demo --out runs/demo --overwrite", "demo --only training --seed 1")

#: in the order they run; a part counts when its module exists, and the first one makes what the others look at
PARTS = ("training", "interleaved", "compress", "pooling", "routes", "adapt", "together")


@dataclass(frozen=True, kw_only=True)
class Arguments(Computation):
    """Train a network on embedded real digits, let every part of convsmith work on it, and write one report.

    Needs no download. Takes a few minutes on two cores.
    """

    only: tuple[str, ...] = option((), f"parts to run: {', '.join(PARTS)} (training always does)", metavar="PART")


@dataclass(kw_only=True)
class Context:
    """What the parts share. The training part sets ``images``, ``model`` (eval mode, on ``device``) and ``recipe``."""

    folder: Path
    device: str
    seed: int
    headline: dict[str, Any] = field(default_factory=dict)
    images: ImageData = field(init=False)
    model: nn.Module = field(init=False)
    recipe: ModelRecipe = field(init=False)


def run(arguments: Arguments) -> dict[str, Any]:
    """Run the parts, then write the report and name it."""
    run_folder.check("demo", arguments)
    chosen = parts(arguments.only)
    from convsmith.report import Section, build_report
    from convsmith.training import resolve_device

    device = resolve_device(arguments.device)
    folder = run_folder.open_run("demo", arguments)
    context = Context(folder=folder, device=str(device), seed=arguments.seed)
    seconds: dict[str, float] = {}
    missing: list[str] = []
    for name, (title, work) in chosen.items():
        terminal.say(f"== {title}")
        began = time.monotonic()
        try:
            work(context)
        except MissingExtra as absent:
            missing.append(f"{title}: left out. {' '.join(str(absent).split())}")
            terminal.complain("left out", str(absent))
        seconds[name] = round(time.monotonic() - began, 1)
    if missing:
        Section("Parts left out", notes=missing).save(folder, "90-left-out")
    summary = {
        "title": "convsmith demo",
        "lead": ["Every number on this page was measured on this machine by the run that wrote it."],
        "headline": context.headline,
        "seconds": seconds,
        "left_out": missing,
    }
    run_folder.write_json(folder / "result.json", summary)
    report = build_report([folder])
    terminal.say("", f"done in {sum(seconds.values()):.0f} s", f"report  {report.resolve()}")
    return {"run": str(folder), "report": str(report), **summary}


def parts(only: tuple[str, ...] = ()) -> dict[str, tuple[str, Callable[[Context], None]]]:
    """Return the parts that exist (and are asked for) by name, each with its title and function."""
    there = [name for name in PARTS if importlib.util.find_spec(f"convsmith.cli.reports.demo_{name}") is not None]
    for name in only:
        if name not in there:
            hint = close_matches(name, there)
            raise InvalidArgument("the demonstration has no such part", argument="--only", given=repr(name), hint=hint)
    found = {}
    for name in there:
        if not only or name in only or name == "training":
            module = importlib.import_module(f"convsmith.cli.reports.demo_{name}")
            found[name] = (module.TITLE, module.run)
    return found
