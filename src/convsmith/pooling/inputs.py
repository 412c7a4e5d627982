"""What every pooling accepts, checked before work, and the float32 island its sums and roots run in."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from convsmith.errors import InvalidArgument

F = TypeVar("F", bound=Callable[..., Any])


def is_plain(x: Tensor) -> bool:
    """Say whether looking at values is allowed and free: eager mode on a CPU, no function transform, no tracing."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and not torch._C._are_functorch_transforms_active()
        and not torch.jit.is_tracing()
    )


def refuse_not_finite(x: Tensor, asked: str) -> None:
    """Raise `InvalidArgument` if ``x`` holds NaN or infinity.

    Only on a CPU in eager mode: elsewhere the look costs a synchronisation, and a value that is not finite stays in
    its own sample's output.
    """
    if not is_plain(x):
        return
    x = x.detach()
    if not bool(torch.isfinite(x.sum())) and not bool(torch.isfinite(x).all()):
        bad = (~torch.isfinite(x)).flatten(1).any(1).nonzero().flatten().tolist()
        raise InvalidArgument(
            "the features must be finite",
            argument=asked,
            given=f"NaN or infinity in sample {', '.join(map(str, bad[:8]))} of {len(x)}",
            hint="look for a loss that diverged, a bad image or a division by zero before this layer",
        )


def columns(x: Tensor, asked: str = "pooling") -> Tensor:
    """Return features [B, C, H, W] or [B, C, M] as [B, C, M], or raise `InvalidArgument`."""
    if not isinstance(x, Tensor) or x.dim() not in (3, 4):
        raise InvalidArgument(
            "features are [B, C, H, W] or [B, C, M]",
            argument=asked,
            given=f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__,
            hint="add a batch dimension with x[None], or transpose tokens [B, N, C] to [B, C, N]",
        )
    if not x.is_floating_point():
        raise InvalidArgument("features must be floating point", argument=asked, given=str(x.dtype), hint="x.float()")
    x = x.flatten(2)
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise InvalidArgument("at least one channel and one position are needed", argument=asked, given=tuple(x.shape))
    refuse_not_finite(x, asked)
    return x


def square(a: Tensor, asked: str) -> Tensor:
    """Return a batch of square matrices [B, d, d] (or one, [d, d]) unchanged, or raise `InvalidArgument`."""
    if not isinstance(a, Tensor) or a.dim() < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise InvalidArgument(
            "a batch of square matrices [B, d, d] is needed",
            argument=asked,
            given=f"shape {tuple(a.shape)}" if isinstance(a, Tensor) else type(a).__name__,
        )
    if not a.is_floating_point():
        raise InvalidArgument("matrices must be floating point", argument=asked, given=str(a.dtype), hint="a.float()")
    refuse_not_finite(a, asked)
    return a


def positive(name: str, value: int, least: int = 1) -> int:
    """Return the integer ``value`` if it is at least ``least``, or raise `InvalidArgument`."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InvalidArgument(f"an integer of at least {least} is needed", argument=name, given=repr(value))
    return value


def one_of(name: str, value: object, known: tuple[object, ...]) -> None:
    """Raise `InvalidArgument` unless ``value`` is among ``known``."""
    if value not in known:
        raise InvalidArgument(
            "not one of the known choices",
            argument=name,
            given=repr(value),
            hint=f"one of {', '.join(map(repr, known))}",
        )


def float32_island(function: F) -> F:
    """Run ``function(x, ...)`` outside autocast, half and bfloat16 in float32, and give the result x's type back.

    Sums of squares overflow float16 beyond 65,504 and the null space of a rank-deficient covariance amplifies
    rounding by 3/2 per Newton-Schulz step, so second-order statistics need the longer type (measured: bfloat16
    iterations diverge from the tenth step on).
    """

    @functools.wraps(function)
    def run(x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        kind = x.device.type if isinstance(x, Tensor) else "cpu"
        low = isinstance(x, Tensor) and x.dtype in (torch.float16, torch.bfloat16)
        if not low and not torch.is_autocast_enabled(kind):
            return function(x, *args, **kwargs)
        with torch.autocast(kind, enabled=False):
            out = function(x.float() if low else x, *args, **kwargs)
        return out.to(x.dtype) if low else out

    return run  # type: ignore[return-value]  # wraps() keeps the signature, which mypy cannot see
