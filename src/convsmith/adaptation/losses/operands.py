"""What losses and validators take: tensors of one shape, refused by the argument's name otherwise."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.errors import InvalidArgument


def matrix(name: str, value: Any, *, rows: int | None = None, columns: int | None = None) -> Tensor:
    """Return ``value`` if it is a floating-point tensor [n, d]; ``rows`` and ``columns`` where only one is right."""
    shape = f"[{'n' if rows is None else rows}, {'d' if columns is None else columns}]"
    checked = arguments.tensor(name, value, rank=2, what=f"floating-point numbers {shape}")
    if rows not in (None, len(checked)) or columns not in (None, checked.shape[1]):
        raise InvalidArgument(f"{name} must be {shape}", argument=name, given=tuple(checked.shape))
    return checked


def vector(name: str, value: Any, *, length: int | None = None) -> Tensor:
    """Return ``value`` if it is a floating-point tensor [n]."""
    shape = f"[{'n' if length is None else length}]"
    checked = arguments.tensor(name, value, rank=1, what=f"floating-point numbers {shape}")
    if length not in (None, len(checked)):
        raise InvalidArgument(f"{name} must be {shape}", argument=name, given=tuple(checked.shape))
    return checked


def labels(name: str, value: Any, *, length: int | None = None) -> Tensor:
    """Return ``value`` if it is a tensor [n] of whole numbers."""
    shape = f"[{'n' if length is None else length}]"
    checked = arguments.tensor(name, value, rank=1, floating=False, what=f"whole numbers {shape}")
    if checked.is_floating_point() or checked.dtype == torch.bool or length not in (None, len(checked)):
        raise InvalidArgument(f"{name} must be whole numbers {shape}", argument=name, given=arguments.spelled(checked))
    return checked


def pair(source: Any, target: Any, *, names: tuple[str, str] = ("source", "target")) -> tuple[Tensor, Tensor]:
    """Return both sides if they are features [n, d] and [m, d] of at least one sample each."""
    source, target = matrix(names[0], source), matrix(names[1], target)
    if source.shape[1] != target.shape[1] or source.device != target.device:
        rule = "both sides are features [n, d] of the same width d, on one device"
        given = f"{tuple(source.shape)} on {source.device} and {tuple(target.shape)} on {target.device}"
        raise InvalidArgument(rule, argument=names[1], given=given)
    for name, side in zip(names, (source, target), strict=True):
        if len(side) == 0 or side.shape[1] == 0:
            rule = "both sides need at least one sample and one column"
            raise InvalidArgument(rule, argument=name, given=tuple(side.shape))
    return source, target
