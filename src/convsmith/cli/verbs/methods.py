"""``convsmith methods``: list every pooling, compressor, adapter, validator, attack."""

from __future__ import annotations

import importlib
import pkgutil
from dataclasses import dataclass
from typing import Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.errors import InvalidArgument, close_matches
from convsmith.registry import Registry

EXAMPLES = ("methods", "methods pooling", "methods --json")

ROOMS = ("data", "pooling", "compression", "interpretation", "adaptation")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """List everything that has a name: poolings, compressors, adapters, validators, attacks, data sets, suites."""

    kind: str | None = option(None, "only this kind", metavar="KIND", positional=True)


def run(arguments: Arguments) -> dict[str, Any]:
    """Print one line per method, kind by kind."""
    found = registries()
    if arguments.kind is not None:
        if arguments.kind not in found:
            hint = close_matches(arguments.kind, found)
            raise InvalidArgument("no kind has this name", argument="methods", given=repr(arguments.kind), hint=hint)
        found = {arguments.kind: found[arguments.kind]}
    rows = [(kind, entry.name, entry.summary) for kind, registry in found.items() for entry in registry]
    terminal.table(("kind", "name", "what it is"), rows)
    return {"methods": {kind: registry.names() for kind, registry in found.items()}}


def registries() -> dict[str, Registry[Any]]:
    """Return every registry of convsmith by its kind; a registry counts when a module of a room holds it."""
    found: dict[str, Registry[Any]] = {}
    for room in ROOMS:
        package = importlib.import_module(f"convsmith.{room}")
        names = [item.name for item in pkgutil.walk_packages(package.__path__, f"convsmith.{room}.")]
        for module in [package, *(importlib.import_module(name) for name in names)]:
            for value in vars(module).values():
                if isinstance(value, Registry) and len(value):
                    found[value.kind] = value
    return found
