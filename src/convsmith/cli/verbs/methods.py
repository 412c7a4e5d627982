"""``convsmith methods``: list every pooling, compressor, adapter, validator, attack."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from dataclasses import dataclass
from typing import Any

from convsmith.cli.shell import settings, terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.errors import InvalidArgument, close_matches
from convsmith.registry import Entry, Registry, setting_types

EXAMPLES = ("methods", "methods pooling", "methods low-rank", "methods --json")

ROOMS = ("data", "pooling", "compression", "interpretation", "adaptation")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """List what has a name (poolings, compressors, adapters, validators, attacks), or one with its settings."""

    kind: str | None = option(
        None, "only this kind; or one method, with its settings", metavar="KIND|NAME", positional=True
    )


def run(arguments: Arguments) -> dict[str, Any]:
    """Print one line per method, kind by kind."""
    found = registries()
    if arguments.kind is not None and arguments.kind not in found:
        return _describe(arguments.kind, found)
    if arguments.kind is not None:
        found = {arguments.kind: found[arguments.kind]}
    rows = [(kind, entry.name, entry.summary) for kind, registry in found.items() for entry in registry]
    terminal.table(("kind", "name", "what it is"), rows)
    return {"methods": {kind: registry.names() for kind, registry in found.items()}}


def _describe(name: str, found: dict[str, Registry[Any]]) -> dict[str, Any]:
    """Print what a method is and every setting with its type, default and meaning."""
    entries = {kind: registry.entry(name) for kind, registry in found.items() if name in registry}
    if not entries:
        known = [*found, *(entry.name for registry in found.values() for entry in registry)]
        hint = close_matches(name, known)
        raise InvalidArgument("no kind or method has this name", argument="methods", given=repr(name), hint=hint)
    described = {}
    for kind, entry in entries.items():
        rows = own_settings(entry)
        terminal.say(f"{name} ({kind}): {entry.summary}")
        terminal.table(("setting", "value", "default", "meaning"), rows)
        described[kind] = [dict(zip(("setting", "value", "default", "meaning"), row, strict=True)) for row in rows]
    return {"method": name, "settings": described}


#: parameters of a method's constructor that are no settings: the caller gives them by flags of their own
POSITIONAL = ("in_channels", "dim")


def own_settings(entry: Entry[Any]) -> list[tuple[str, str, str, str]]:
    """Return the `setting_rows` of a registered method, without what the caller gives by flags of its own."""
    source = entry.traits.get("settings", entry.value)
    source = source if isinstance(source, type) or "settings" not in entry.traits else source()
    return [row for row in setting_rows(source) if row[0] not in POSITIONAL]


def setting_rows(source: Any) -> list[tuple[str, str, str, str]]:
    """Return (name, type in words, default, meaning) of every setting; meanings come from the docstring's ``Args``."""
    kind = source if isinstance(source, type) or inspect.isroutine(source) else type(source)
    meanings: dict[str, str] = {}
    defaults: dict[str, Any] = {}
    for base in reversed(getattr(kind, "__mro__", (kind,))):
        meanings |= _meanings(base.__doc__ or "")
    if dataclasses.is_dataclass(kind):
        value = source if not isinstance(source, type) else None
        for item in dataclasses.fields(kind):
            default = item.default if item.default is not dataclasses.MISSING else None
            if item.default_factory is not dataclasses.MISSING:
                default = item.default_factory()
            default = getattr(value, item.name) if value is not None else default
            if dataclasses.is_dataclass(default) and not isinstance(default, type):
                inner = setting_rows(default)
                meanings |= {name: text for name, _, _, text in inner}
                defaults |= {n: text for n, _, text, _ in inner}
            defaults[item.name] = default
    else:
        defaults = {p.name: p.default for p in inspect.signature(kind).parameters.values()}
    return [
        (name, settings.spelled(hint), str(defaults.get(name)), meanings.get(name, "").replace("`", ""))
        for name, hint in setting_types(source).items()
    ]


def _meanings(text: str) -> dict[str, str]:
    """Return what the ``Args`` of a docstring say, by name; one line may speak of several."""
    import docstring_parser

    read = docstring_parser.google.GoogleParser().parse(text).params
    return {n: " ".join((p.description or "").split()) for p in read for n in p.arg_name.split(", ")}


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
