"""One small registry per kind of thing: a decorator on a function or class, no duplicates, close matches on a miss.

A registry knows the room its things live in and imports every file of it when somebody first asks for a name: a new
method is its file, and no list names it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from types import UnionType
from typing import Any, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from convsmith.errors import InvalidArgument, close_matches

T = TypeVar("T", bound=Callable[..., Any])


@dataclass(frozen=True)
class Entry(Generic[T]):
    """A registered object with the first line of its docstring and whatever traits its kind declares."""

    name: str
    value: T
    summary: str
    traits: Mapping[str, Any] = field(default_factory=dict)


class Registry(Generic[T]):
    """Names of one kind.

    Args:
        kind: used in messages: 'pooling', 'validator', ...
        room: the package whose files register things of this kind; imported at the first question.
    """

    def __init__(self, kind: str, room: str) -> None:
        self.kind, self.room = kind, room
        self._entries: dict[str, Entry[T]] = {}
        self._complete = False

    def _known(self) -> dict[str, Entry[T]]:
        if not self._complete:
            self._complete = True
            package = importlib.import_module(self.room)
            try:
                for item in pkgutil.iter_modules(package.__path__, f"{self.room}."):
                    importlib.import_module(item.name)
            except BaseException:
                self._complete = False
                raise
        return self._entries

    def register(self, name: str, **traits: Any) -> Callable[[T], T]:
        """Return a decorator that records its object under ``name``; a duplicate name is an error."""

        def record(value: T) -> T:
            if name in self._entries:
                raise InvalidArgument(f"{self.kind} {name!r} is registered twice", given=repr(value))
            lines = (value.__doc__ or "").strip().splitlines()
            self._entries[name] = Entry(name, value, lines[0] if lines else "", traits)
            return value

        return record

    def __getitem__(self, name: str) -> T:
        return self.entry(name).value

    def entry(self, name: str) -> Entry[T]:
        """Return the entry called ``name`` or raise `InvalidArgument` with close matches."""
        known = self._known()
        if not isinstance(name, str) or name not in known:
            rule = f"no {self.kind} has this name"
            raise InvalidArgument(rule, argument=self.kind, given=repr(name), hint=close_matches(str(name), known))
        return known[name]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._known())

    def __contains__(self, name: object) -> bool:
        return name in self._known()

    def __iter__(self) -> Iterator[Entry[T]]:
        return (self._known()[name] for name in self.names())

    def __len__(self) -> int:
        return len(self._known())


def setting_types(method: Any) -> dict[str, Any]:
    """Return the settings of a method, each with its type.

    Args:
        method: a settings dataclass (its class or a value; a nested group gives its fields, not its own name), a class
            or function whose keyword parameters are the settings, or a mapping of names to types, returned as it is.
    """
    if isinstance(method, Mapping):
        return dict(method)
    kind = method if isinstance(method, type) or inspect.isroutine(method) else type(method)
    if not is_dataclass(kind):
        maker: Any = getattr(kind, "__init__") if isinstance(kind, type) else kind  # noqa: B009  (mypy distrusts kind.__init__)
        taken = get_type_hints(maker)
        parameters = inspect.signature(kind).parameters.values()
        return {p.name: taken.get(p.name, Any) for p in parameters if p.default is not inspect.Parameter.empty}
    hints = get_type_hints(kind)
    found: dict[str, Any] = {}
    for item in fields(kind):
        if item.init:
            group = hints[item.name]
            found |= setting_types(group) if is_dataclass(group) else {item.name: group}
    return found


def check_settings(method: str, given: Iterable[str], known: Iterable[str], *, argument: str = "settings") -> None:
    """Refuse the first name of ``given`` that is no setting of ``method``, with close matches among the ``known``."""
    names = sorted(known)
    for name in given:
        if name not in names:
            hint = close_matches(name, names) if names else "it has none"
            raise InvalidArgument(f"{method} has no such setting", argument=argument, given=repr(name), hint=hint)


def fitted(value: Any, kind: Any, *, written: bool = False) -> tuple[bool, Any]:
    """Tell whether ``value`` can be taken as the annotated type ``kind``, and return it as that: a list as a tuple.

    Unions, sequences and literals are looked into, numbers must be finite (whole ones of 64 bits), a whole number is a
    real one too. A number may be ``written`` as text: YAML reads 1e-3 so.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        tried = (fitted(value, one, written=written) for one in inner)
        return next((found for found in tried if found[0]), (False, value))
    if origin is Literal:
        return any(type(value) is type(item) and value == item for item in inner), value
    if kind is tuple or origin in (tuple, list, Sequence):
        if origin is Sequence and (isinstance(value, range) or type(value).__module__ == "numpy"):
            value = list(value) if isinstance(value, range) else value.tolist()
        if not isinstance(value, list | tuple):
            return False, value
        alike = not inner or inner[-1] is ... or origin is not tuple
        kinds = [inner[0] if inner else Any] * len(value) if alike else list(inner)
        members = [fitted(item, one, written=written) for item, one in zip(value, kinds, strict=False)]
        return len(kinds) == len(value) and all(fits for fits, _ in members), tuple(result for _, result in members)
    if kind is float and written and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return False, value
    if kind in (int, float):
        most = sys.float_info.max if kind is float else sys.maxsize
        real = isinstance(value, int if kind is int else (int, float)) and not isinstance(value, bool)
        fits = real and abs(value) <= most
        return fits, kind(value) if fits else value
    if origin is Callable:
        return callable(value), value
    return kind is Any or not isinstance(origin or kind, type) or isinstance(value, origin or kind), value
