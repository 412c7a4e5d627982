"""Checks of arguments at the public boundary, once for all rooms: each raises `InvalidArgument` naming the argument."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from collections.abc import Callable, Sequence
from types import UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

from convsmith.errors import InvalidArgument, close_matches
from convsmith.registry import fitted

F = TypeVar("F", bound=Callable[..., Any])
#: what annotations are called in messages
_WORDS = {"int": "a whole number", "float": "a finite number", "bool": "True or False", "str": "a text"}


def spelled(value: object) -> str:
    """Say what was given: shape, type and device of a tensor, else the type and a short form."""
    if isinstance(value, Tensor):
        kind = str(value.dtype).removeprefix("torch.")
        place = "" if value.device.type == "cpu" else f" on {value.device}"
        layout = "" if value.layout == torch.strided else f" ({str(value.layout).removeprefix('torch.')})"
        return f"a {kind} tensor of shape {tuple(value.shape)}{layout}{place}"
    text = " ".join(repr(value).split())
    return f"{type(value).__name__} {text if len(text) <= 60 else text[:57] + '...'}"


def tensor(
    name: str, value: Any, *, rank: int | Sequence[int] | None = None, floating: bool = True, what: str = "a tensor"
) -> Tensor:
    """Return ``value`` if it is a dense tensor with values, of a real floating type and one of the ranks.

    Args:
        name: the argument's name, for the message.
        value: what was given.
        rank: the number of dimensions, or those that are allowed.
        floating: also refuse integers and booleans; complex numbers are refused always.
        what: what the argument should be, in words: "features [n, d]".
    """
    if not isinstance(value, Tensor):
        hint = "torch.as_tensor(...)" if hasattr(value, "__array__") else None
        raise InvalidArgument(f"{name} must be {what}", argument=name, given=spelled(value), hint=hint)
    ranks = () if rank is None else (rank,) if isinstance(rank, int) else tuple(rank)
    hint = None
    if value.layout != torch.strided:
        hint = "x.to_dense()"
    elif value.device.type == "meta":
        hint = "a tensor on the meta device has no values"
    elif value.is_complex():
        hint = "take the real part or the absolute value"
    elif floating and not value.is_floating_point():
        hint = "x.float()"
    elif not ranks or value.dim() in ranks:
        return value
    raise InvalidArgument(f"{name} must be {what}", argument=name, given=spelled(value), hint=hint)


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least: half precision is measured in float32, float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def integer(name: str, value: Any, *, least: int | None = None, most: int | None = None) -> int:
    """Return ``value`` if it is a whole number (no boolean) within the bounds."""
    whole = isinstance(value, int) and not isinstance(value, bool)
    if not whole or (least is not None and value < least) or (most is not None and value > most):
        bounds = [f"at least {least}"] * (least is not None) + [f"at most {most}"] * (most is not None)
        wanted = " ".join(["a whole number", " and ".join(bounds)]).strip()
        raise InvalidArgument(f"{name} must be {wanted}", argument=name, given=spelled(value))
    return int(value)


def number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> float:
    """Return ``value`` if it is a finite real number (no boolean) in bounds; ``above``, ``below`` are outside."""
    real = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max
    rules = [
        ("above", above, lambda bound: value > bound),
        ("at least", least, lambda bound: value >= bound),
        ("below", below, lambda bound: value < bound),
        ("at most", most, lambda bound: value <= bound),
    ]
    bounds = [(words, bound, holds) for words, bound, holds in rules if bound is not None]
    if not real or not all(holds(bound) for _, bound, holds in bounds):
        wanted = " and ".join(f"{words} {bound}" for words, bound, _ in bounds)
        rule = f"{name} must be a finite number {wanted}".strip()
        raise InvalidArgument(rule, argument=name, given=spelled(value))
    return float(value)


def of_type(name: str, value: Any, wanted: Any) -> Any:
    """Return ``value`` if it is of the annotated type ``wanted`` (`registry.fitted`); lists become tuples."""
    options = get_args(wanted) if get_origin(wanted) in (Union, UnionType) else (wanted,)
    kinds = [kind for kind in options if kind is not type(None)]
    if kinds == [nn.Module] and value is not None:
        return module(name, value)
    if get_origin(wanted) is Literal:
        one_of(name, value, get_args(wanted))
    if not fitted(value, wanted)[0]:
        text = wanted.__name__ if isinstance(wanted, type) and not get_args(wanted) else str(wanted)
        bare = re.sub(r"[\w.]+\.(\w+)", r"\1", text).replace("NoneType", "None")
        words = re.sub(r"\w+", lambda word: _WORDS.get(word[0], word[0]), bare).replace(" | ", " or ")
        array = isinstance(value, list | tuple) or hasattr(value, "__array__")
        hint = "torch.as_tensor(...)" if array and Tensor in kinds else None
        raise InvalidArgument(f"{name} must be {words}", argument=name, given=spelled(value), hint=hint)
    return tuple(value) if isinstance(value, list) else value


def checked(function: F) -> F:
    """Return ``function``, which now refuses an argument of another type than annotated, before it does anything."""
    signature, hints = inspect.signature(function), functools.cache(lambda: get_type_hints(function))
    several = {p.name for p in signature.parameters.values() if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}

    @functools.wraps(function)
    def door(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints() and name not in several:
                of_type(name, value, hints()[name])
        return function(*args, **kwargs)

    return door  # type: ignore[return-value]  # of the same signature


def one_of(name: str, value: Any, known: Sequence[Any]) -> None:
    """Refuse what is not among ``known``, with close matches."""
    if not any(type(value) is type(item) and value == item for item in known):
        hint = (
            close_matches(value, known) if isinstance(value, str) and all(isinstance(k, str) for k in known) else None
        )
        hint = hint or f"one of {', '.join(map(repr, known))}"
        raise InvalidArgument(f"{name} has no such choice", argument=name, given=spelled(value), hint=hint)


def typed(settings: Any) -> None:
    """Refuse a field of a frozen dataclass of another type than annotated; lists become tuples, whole numbers reals."""
    for name, kind in get_type_hints(type(settings)).items():
        object.__setattr__(settings, name, fitted(of_type(name, getattr(settings, name), kind), kind)[1])


def module(name: str, value: Any) -> nn.Module:
    """Return ``value`` if it is a torch module."""
    if not isinstance(value, nn.Module):
        hint = "timm.create_model(NAME), or convsmith.load(NAME).model" if isinstance(value, str) else None
        raise InvalidArgument(f"{name} must be a torch.nn.Module", argument=name, given=spelled(value), hint=hint)
    return value
