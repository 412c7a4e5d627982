"""Settings files: read YAML, refuse unknown keys and wrong types, and lay file over preset over defaults."""

from __future__ import annotations

import types
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from shlex import quote
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from convsmith.errors import InvalidArgument, close_matches
from convsmith.registry import fitted

#: fields that say where settings come from or how to speak; no file can set them
SOURCES = ("config", "preset", "resume", "overwrite", "json", "debug")
#: the settings file by which a folder is recognised as a run
MARK = "config.yaml"
#: the hint where a file is none
TEMPLATE = "convsmith init writes one to start from"
_UNION = (Union, types.UnionType)


def layers(verb: str, arguments: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values of the preset and the file that the flags ``given`` name.

    ``--resume`` without ``--config`` takes the settings of the run folder named by ``--out``, so that a run goes on as
    it was begun.
    """
    values: dict[str, Any] = {}
    if "preset" in given:
        values |= checked(verb, arguments, preset_text(verb, given["preset"]), where=f"preset {given['preset']}")
    if "config" in given:
        path = Path(given["config"])
        path = path / MARK if (path / MARK).is_file() else path
        values |= checked(verb, arguments, text_of(path), where=str(path))
    elif given.get("resume"):
        if "out" not in given:
            raise InvalidArgument("--resume needs the run folder", argument="--resume", hint="add --out DIR")
        folder = Path(given["out"])
        stored = folder / MARK
        if not stored.is_file():
            rule, hint = "there is nothing to resume", "name the folder of an interrupted run, or leave --resume out"
            missing = f"a folder without {MARK}" if folder.is_dir() else "no such folder"
            raise InvalidArgument(rule, argument=f"--resume --out {folder}", given=missing, hint=hint)
        values |= checked(verb, arguments, text_of(stored), where=str(stored))
    return values


def checked(verb: str, arguments: type[Any], text: str, *, where: str) -> dict[str, Any]:
    """Return the settings in YAML ``text`` as values of the fields of ``arguments``, or raise `InvalidArgument`."""
    import yaml

    try:
        loaded = yaml.safe_load(text)
        node = yaml.compose(text, yaml.SafeLoader)
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = where if mark is None else f"{where}, line {mark.line + 1}"
        given = str(getattr(error, "problem", None) or error).splitlines()[0]
        raise InvalidArgument("a settings file must be YAML", argument=place, given=given, hint=TEMPLATE) from None
    _refuse_repeated(node, where)
    loaded = {} if loaded is None else loaded
    if not isinstance(loaded, Mapping):
        rule = "a settings file must hold 'key: value' lines"
        given = f"a {type(loaded).__name__} ({str(loaded)[:60]!r})"
        raise InvalidArgument(rule, argument=where, given=given, hint=TEMPLATE)
    hints = get_type_hints(arguments)
    allowed = {name: kind for name, kind in hints.items() if name not in SOURCES}
    values: dict[str, Any] = {}
    for key, value in loaded.items():
        name = str(key).replace("-", "_")
        if name == "verb":
            if value != verb:
                rule, hint = "the settings file is for another verb", f"convsmith {value} --config {quote(where)}"
                raise InvalidArgument(rule, argument=f"convsmith {verb}", given=f"verb: {value} in {where}", hint=hint)
            continue
        if name not in allowed:
            rule = f"convsmith {verb} has no setting of this name"
            raise InvalidArgument(rule, argument=where, given=repr(str(key)), hint=close_matches(name, allowed))
        values[name] = converted(value, allowed[name], name=str(key), where=where)
    return values


def _refuse_repeated(node: Any, where: str) -> None:
    """Refuse a key that stands twice, which YAML readers otherwise settle silently in favour of the last."""
    keys = [key.value for key, _ in node.value] if getattr(node, "id", "") == "mapping" else []
    keys = [key.replace("-", "_") for key in keys if isinstance(key, str)]
    for key in keys:
        if keys.count(key) > 1:
            rule = "a setting stands twice in the file"
            raise InvalidArgument(rule, argument=where, given=repr(key), hint="keep one")


def converted(value: Any, kind: Any, *, name: str, where: str) -> Any:
    """Return ``value`` as the type ``kind``, or raise `InvalidArgument`; 1e-3, which YAML reads as text, is fine."""
    fits, result = fitted(value, kind, written=True)
    if not fits:
        given = f"{value!r} ({type(value).__name__})"
        raise InvalidArgument(f"{name} must be {spelled(kind)}", argument=f"{name} in {where}", given=given)
    return result


def fits(value: Any, kind: Any) -> bool:
    """Tell whether ``value`` can be taken as the type ``kind``."""
    return fitted(value, kind, written=True)[0]


def spelled(kind: Any) -> str:
    """Say a type in words: 'a whole number', 'one of cosine, step'."""
    origin = get_origin(kind)
    if origin in _UNION:
        return " or ".join(spelled(choice) for choice in get_args(kind))
    if origin is Literal:
        return "one of " + ", ".join(str(choice) for choice in get_args(kind))
    if origin is tuple:
        kinds = get_args(kind)
        count = "" if kinds[-1] is Ellipsis else f" of {len(kinds)}"
        return f"a list{count}, each {spelled(kinds[0])}"
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
    return words.get(kind, getattr(kind, "__name__", str(kind)))


def presets(verb: str | None = None) -> dict[str, str]:
    """Return the packaged presets (of one verb) by name, each with its YAML text."""
    found = {}
    for item in resources.files("convsmith.cli").joinpath("presets").iterdir():
        if not item.name.endswith(".yaml"):
            continue
        name, text = item.name.removesuffix(".yaml"), item.read_text(encoding="utf-8")
        if verb is None or text.startswith(f"# convsmith {verb} "):
            found[name] = text
    return dict(sorted(found.items()))


def preset_text(verb: str | None, name: str) -> str:
    """Return the text of one preset of ``verb`` (any verb if None), or raise `InvalidArgument` with close names."""
    known = presets(verb)
    if name not in known:
        of = "" if verb is None else f" for {verb}"
        hint = close_matches(name, known) if known else "there are none; use --config FILE"
        argument = "PRESET" if verb is None else "--preset NAME"
        raise InvalidArgument(f"no preset{of} has this name", argument=argument, given=repr(name), hint=hint)
    return known[name]


def text_of(path: Path) -> str:
    """Return the text of a settings file, or raise `InvalidArgument`."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a text file"
        rule = "the settings file cannot be read"
        raise InvalidArgument(rule, argument=f"--config {path}", given=reason, hint=TEMPLATE) from None
