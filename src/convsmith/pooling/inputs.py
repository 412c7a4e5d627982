"""What every pooling accepts, checked before work, and the float32 island its sums and roots run in."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from convsmith.arguments import spelled
from convsmith.errors import InvalidArgument

HALVES = (torch.float16, torch.bfloat16)

F = TypeVar("F", bound=Callable[..., Any])


def has_values(x: Tensor) -> bool:
    """Say whether ``x`` has memory of its own: not inside vmap or another function transform, not a fake tensor."""
    try:
        x.data_ptr()
    except RuntimeError:
        return False
    return True


def is_plain(x: Tensor) -> bool:
    """Say whether looking at values is allowed and free: eager mode on a CPU, no function transform, no tracing."""
    return (
        not torch.compiler.is_compiling()
        and type(x) in (Tensor, torch.nn.Parameter)
        and x.device.type == "cpu"
        and not torch.jit.is_tracing()
        and has_values(x)
    )


def is_traced(x: Tensor) -> bool:
    """Say whether only plain operations will do: compiled or traced, or ``x`` carries a forward-mode tangent."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing():
        return True
    return forward_ad.unpack_dual(x).tangent is not None


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
        given = f"NaN or infinity in sample {', '.join(map(str, bad[:8]))} of {len(x)}"
        hint = "look for a loss that diverged, a bad image or a division by zero before this layer"
        raise InvalidArgument("the features must be finite", argument=asked, given=given, hint=hint)


def columns(x: Tensor, asked: str) -> Tensor:
    """Return features [B, C, H, W] or [B, C, M] as [B, C, M], or raise `InvalidArgument`."""
    if not isinstance(x, Tensor) or x.dim() not in (3, 4):
        hint = "add a batch dimension with x[None], or transpose tokens [B, N, C] to [B, C, N]"
        raise InvalidArgument("features are [B, C, H, W] or [B, C, M]", argument=asked, given=spelled(x), hint=hint)
    _refuse_kinds("features", x, asked)
    x = x.flatten(2)
    if x.shape[1] == 0 or x.shape[2] == 0:
        raise InvalidArgument("at least one channel and one position are needed", argument=asked, given=tuple(x.shape))
    refuse_not_finite(x, asked)
    return x


def square(a: Tensor, asked: str) -> Tensor:
    """Return a batch of square matrices [B, d, d] (or one, [d, d]) unchanged, or raise `InvalidArgument`."""
    if not isinstance(a, Tensor) or a.dim() < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] == 0:
        raise InvalidArgument("a batch of square matrices [B, d, d] is needed", argument=asked, given=spelled(a))
    _refuse_kinds("matrices", a, asked)
    refuse_not_finite(a, asked)
    return a


def _refuse_kinds(what: str, x: Tensor, asked: str) -> None:
    if not x.is_floating_point():
        raise InvalidArgument(f"{what} must be floating point", argument=asked, given=spelled(x), hint="x.float()")
    if x.layout != torch.strided:
        raise InvalidArgument(f"{what} must be dense", argument=asked, given=spelled(x), hint="x.to_dense()")


def refuse_overflow(out: Tensor, x: Tensor, asked: str) -> Tensor:
    """Return ``out``, or raise `InvalidArgument` if finite features made it infinite or NaN; as `refuse_not_finite`."""
    if is_plain(out) and not bool(torch.isfinite(out.detach().sum())) and bool(torch.isfinite(x.detach()).all()):
        if bool(torch.isfinite(out.detach()).all()):
            return out
        raise InvalidArgument(
            f"the result is not finite in {str(out.dtype).removeprefix('torch.')}",
            argument=asked,
            given=f"finite values up to {float(x.detach().abs().max()):.3g}",
            hint="numbers this large overflow: scale them or give them in a wider type; "
            "if they are small, an iteration without its normalisation diverged",
        )
    return out


def power_of_two(x: Tensor) -> Tensor:
    """Return a scale [B, 1, 1] for features [B, C, M] whose squares leave the type's range, 1 for all others.

    A power of two, so that dividing by it rounds nothing; constant for gradients.
    """
    largest = x.detach().abs().amax((1, 2), keepdim=True)
    exponent = torch.log2(torch.where(largest > 0, largest, 1.0)).floor()
    far = exponent.abs() > int(math.log2(torch.finfo(x.dtype).max)) // 4
    return torch.exp2(torch.where(far, exponent, 0.0))


def float32_island(function: F) -> F:
    """Run ``function(x, ...)`` (or a method) outside autocast, halves in float32, and give the result x's type back.

    Sums of squares overflow float16 beyond 65,504 and the null space of a rank-deficient covariance amplifies
    rounding by 3/2 per Newton-Schulz step, so second-order statistics need the longer type (measured: bfloat16
    iterations diverge from the tenth step on).
    """
    return _island(function, lambda x: torch.float32 if x.dtype in HALVES else x.dtype)


def float64_island(function: F) -> F:
    """Run ``function(x, ...)`` outside autocast and in float64, and give the result x's type back.

    For logarithms, distances and inverse roots: they need eigenvalues a millionth of the largest, which float32 squares
    do not hold (measured: L2EMG of 256 channels in float32 was wrong by its own size). Devices without float64 compute
    in float32.
    """
    return _island(function, lambda x: torch.float32 if x.device.type == "mps" else torch.float64)


def _island(function: F, wide: Callable[[Tensor], torch.dtype]) -> F:
    names = list(inspect.signature(function).parameters)
    bound = int(names[0] == "self")
    first = names[bound]

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Tensor:
        x, *rest = args[bound:] or (kwargs.get(first),)
        if not isinstance(x, Tensor) or not x.is_floating_point() or x.device.type == "meta":
            return function(*args, **kwargs)
        if not args[bound:]:
            del kwargs[first]
        dtype = wide(x)
        if x.dtype == dtype and not torch.is_autocast_enabled(x.device.type):
            return function(*args[:bound], x, *rest, **kwargs)
        with torch.autocast(x.device.type, enabled=False):
            out = function(*args[:bound], x.to(dtype), *rest, **kwargs)
        return refuse_overflow(out.to(x.dtype), x, first)

    return run  # type: ignore[return-value]  # wraps() keeps the signature, which mypy cannot see
