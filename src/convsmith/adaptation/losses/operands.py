"""What losses and validators take: dense real tensors of one shape, refused by the argument's name otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convsmith.errors import InvalidArgument


def matrix(name: str, value: Any, *, rows: int | None = None, columns: int | None = None) -> Tensor:
    """Return ``value`` if it is a dense floating-point tensor [n, d] that holds numbers.

    Args:
        name: the argument, as the error calls it.
        value: what was given.
        rows: n, if only one is right.
        columns: d, if only one is right.

    Raises:
        InvalidArgument: anything else: lists, arrays, integers, complex, sparse and meta tensors, another shape.
    """
    checked = _dense(name, value)
    if not checked.is_floating_point():
        raise InvalidArgument(f"{name} are floating-point numbers", argument=name, given=str(checked.dtype))
    right = checked.dim() == 2 and rows in (None, len(checked)) and columns in (None, checked.shape[1])
    if not right:
        wanted = f"[{'n' if rows is None else rows}, {'d' if columns is None else columns}]"
        raise InvalidArgument(f"{name} has shape {wanted}", argument=name, given=tuple(checked.shape))
    return checked


def vector(name: str, value: Any, *, length: int | None = None) -> Tensor:
    """Return ``value`` if it is a dense floating-point tensor [n]; see `matrix`."""
    checked = _dense(name, value)
    if not checked.is_floating_point() or checked.dim() != 1 or length not in (None, len(checked)):
        raise InvalidArgument(
            f"{name} has shape [{'n' if length is None else length}] and floating-point numbers",
            argument=name,
            given=f"{tuple(checked.shape)}, {checked.dtype}",
        )
    return checked


def labels(name: str, value: Any, *, length: int | None = None) -> Tensor:
    """Return ``value`` if it is a dense tensor [n] of whole numbers; see `matrix`."""
    checked = _dense(name, value)
    whole = not checked.is_floating_point() and checked.dtype != torch.bool
    if not whole or checked.dim() != 1 or length not in (None, len(checked)):
        raise InvalidArgument(
            f"{name} has shape [{'n' if length is None else length}] and whole numbers",
            argument=name,
            given=f"{tuple(checked.shape)}, {checked.dtype}",
        )
    return checked


def pair(source: Any, target: Any, *, names: tuple[str, str] = ("source", "target")) -> tuple[Tensor, Tensor]:
    """Return both sides if they are features [n, d] and [m, d] of at least one sample each."""
    source, target = matrix(names[0], source), matrix(names[1], target)
    if source.shape[1] != target.shape[1] or source.device != target.device:
        raise InvalidArgument(
            "both sides are features [n, d] of the same width d, on one device",
            argument=names[1],
            given=f"{tuple(source.shape)} on {source.device} and {tuple(target.shape)} on {target.device}",
        )
    for name, side in zip(names, (source, target), strict=True):
        if len(side) == 0 or side.shape[1] == 0:
            raise InvalidArgument(
                "both sides need at least one sample and one column", argument=name, given=tuple(side.shape)
            )
    return source, target


def wide(x: Tensor) -> Tensor:
    """Return ``x`` in float32 at least: half precision is measured in float32, float64 stays."""
    return x if x.dtype == torch.float64 else x.float()


def _dense(name: str, value: Any) -> Tensor:
    if not isinstance(value, Tensor):
        raise InvalidArgument(f"{name} is a tensor", argument=name, given=type(value).__name__)
    if value.layout != torch.strided or value.is_complex() or value.is_quantized or value.device.type == "meta":
        raise InvalidArgument(
            f"{name} is a dense tensor of real numbers",
            argument=name,
            given=f"{value.dtype}, {value.layout}, on {value.device}",
        )
    return value
