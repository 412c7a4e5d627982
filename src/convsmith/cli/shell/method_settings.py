"""``NAME=VALUE`` words: arguments of a network, and ``--set`` for the settings of any method.

The one rule for ``--set KEY=VALUE``: KEY is a field of the method's dataclass (or a parameter of its function),
spelled as in Python, YAML and the report; VALUE is YAML and must have the field's type; an unknown KEY is an error
with close names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from convsmith.cli.shell import settings
from convsmith.errors import InvalidArgument, close_matches
from convsmith.registry import check_settings, setting_types


def keyword_arguments(words: Sequence[str], flag: str = "--model-args", noun: str = "a model") -> dict[str, Any]:
    """Read ``width=8 act_layer=silu`` as keyword arguments; values are YAML."""
    return {name: _value(text, name, flag) for name, text in _pairs(words, flag, noun).items()}


def method_settings(
    words: Sequence[str], methods: Mapping[str, Any], *, flag: str = "--set", reserved: Mapping[str, str] | None = None
) -> dict[str, dict[str, Any]]:
    """Return the settings that ``words`` give to each method, checked and converted to the types of their fields.

    Args:
        words: ``KEY=VALUE``, or ``METHOD.KEY=VALUE`` where only one method of a chain is meant.
        methods: every method by name, each as its settings dataclass, its function or a mapping of names to types (see
            `convsmith.registry.setting_types`). A KEY that several take is given to all of them.
        flag: the flag the words come from, for messages.
        reserved: settings that have a flag of their own, by name; they are refused with it as the hint.

    Raises:
        InvalidArgument: no ``=``, a repeated or unknown KEY, a value of another type.
    """
    known = {name: setting_types(method) for name, method in methods.items()}
    found: dict[str, dict[str, Any]] = {name: {} for name in methods}
    for key, text in _pairs(words, flag, "a setting").items():
        method, dot, name = key.rpartition(".")
        name = name.replace("-", "_")
        takers = [method] if dot else [m for m, types in known.items() if name in types]
        if dot and method not in known:
            hint = close_matches(method, known)
            raise InvalidArgument("no such method is used here", argument=flag, given=repr(method), hint=hint)
        if reserved is not None and name in reserved:
            hint = reserved[name]
            raise InvalidArgument(f"{name} has a flag of its own", argument=flag, given=repr(key), hint=hint)
        if not takers or name not in known[takers[0]]:
            everything = {n for m in (takers or known) for n in known[m]} - set(reserved or ())
            check_settings(" and ".join(takers or known), [name], everything, argument=flag)
        for taker in takers:
            found[taker][name] = _typed(text, known[taker][name], name, flag)
    return found


def _pairs(words: Sequence[str], flag: str, noun: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if not equals or not all(part.replace("-", "_").isidentifier() for part in name.split(".")):
            raise InvalidArgument(f"{noun} argument is NAME=VALUE", argument=flag, given=repr(word))
        if name in found:
            raise InvalidArgument(f"{noun} argument is given twice", argument=flag, given=repr(name), hint="keep one")
        found[name] = value
    return found


def _value(text: str, name: str, flag: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise InvalidArgument("a value is YAML", argument=f"{flag} {name}=VALUE", given=repr(text)) from None


def _typed(text: str, kind: Any, name: str, flag: str) -> Any:
    """Return the text as ``kind``; where the field holds text, the text itself, and ``a,b`` where it holds a list."""
    value = _value(text, name, flag)
    parts = [_value(part, name, flag) for part in text.split(",")] if isinstance(value, str) else [value]
    readings = [value] if value is None else [value, text, parts]
    return settings.converted(next((r for r in readings if settings.fits(r, kind)), value), kind, name=name, where=flag)
