"""One small registry per kind of thing: a decorator on a function or class, no duplicates, close matches on a miss."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

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
    """Names of one kind (``kind`` is used in messages: 'pooling', 'validator', ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, Entry[T]] = {}

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
        if name not in self._entries:
            raise InvalidArgument(
                f"no {self.kind} has this name",
                asked=self.kind,
                given=repr(name),
                mend=close_matches(str(name), self._entries),
            )
        return self._entries[name]

    def names(self) -> list[str]:
        """Return all names, sorted."""
        return sorted(self._entries)

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[Entry[T]]:
        return (self._entries[name] for name in self.names())

    def __len__(self) -> int:
        return len(self._entries)
