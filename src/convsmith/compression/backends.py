"""Ways to run a chain of group convolutions; all give the same numbers, none is the fastest everywhere.

==============  ======================================================================================================
``group``       the definition: grouped convolutions with channel shuffles in between (exports without a gather)
``matmul``      shuffle-free: a factor contracts one axis of the view ``[slow, K, fast]`` as a batched matrix product
``dense``       the composite kernel, computed once per weight version, in one dense convolution
``packed``      grouped convolutions on weights packed once for oneDNN, channels_last
``packed-pieces``  the same, a piece of the batch at a time whose activations stay in the cache
``packed-dense``  the composite kernel packed once for oneDNN, channels_last
==============  ======================================================================================================

The packed ones need a CPU, float32, channels_last and no gradient. ``auto`` measures the candidates once per chain,
input shape, layout, device, thread number and gradient mode and remembers the fastest for the life of the process;
the dense layer is always among them, so a chain is never slower than the layer it replaces by more than the noise of
the measurement. While a graph is traced, compiled, exported or counted, ``auto`` is ``group``.
"""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.compression import onednn
from convsmith.compression.contraction import contract
from convsmith.compression.wiring import Order, Wiring
from convsmith.errors import InvalidArgument


@dataclass(frozen=True)
class ChainGeometry:
    """The spatial settings of a chain's first factor."""

    kernel_size: int = 1
    stride: int = 1
    padding: int = 0
    dilation: int = 1


class Chain(Protocol):
    """What a backend needs of a chain (a `LinearChain`)."""

    wiring: Wiring
    geometry: ChainGeometry
    weights: nn.ParameterList
    backend: str


def dense_kernel(weights: Sequence[Tensor], wiring: Wiring) -> Tensor:
    """Return the composite kernel [out, in, k, k] of a chain: the later factors applied to the first one's kernel."""
    first, factor = weights[0], wiring.factors[0]
    out, members, height, width = first.shape
    blocks = first.view(factor.groups, out // factor.groups, 1, members, height, width)
    eye = torch.eye(factor.groups, dtype=first.dtype, device=first.device).view(
        factor.groups, 1, factor.groups, 1, 1, 1
    )
    kernel = (blocks * eye).reshape(1, out, factor.in_channels, height * width)
    for weight, factor in zip(weights[1:], wiring.factors[1:], strict=True):
        kernel = F.conv2d(_ordered(kernel, factor.order), weight, groups=factor.groups)
    kernel = _ordered(kernel, wiring.final_order)[0]
    if wiring.factors[0].order is not None:
        kernel = kernel[:, wiring.factors[0].order.inverse().index().to(kernel.device)]
    return kernel.reshape(wiring.out_channels, wiring.in_channels, height, width)


def _ordered(x: Tensor, order: Order | None) -> Tensor:
    return x if order is None else order(x)


def by_group(x: Tensor, chain: Chain) -> Tensor:
    """Run grouped convolutions with a shuffle before each: the definition."""
    for position, (weight, factor) in enumerate(zip(chain.weights, chain.wiring.factors, strict=True)):
        g = chain.geometry if position == 0 else ChainGeometry()
        x = F.conv2d(_ordered(x, factor.order), weight, None, g.stride, g.padding, g.dilation, groups=factor.groups)
    return _ordered(x, chain.wiring.final_order)


def by_matmul(x: Tensor, chain: Chain) -> Tensor:
    """Run 1x1 factors as batched products over one axis of a view; the spatial factor stays a grouped convolution."""
    weights = list(chain.weights)
    if torch.is_autocast_enabled(x.device.type):
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weights = x.to(dtype), [weight.to(dtype) for weight in weights]
    for position, (weight, factor) in enumerate(zip(weights, chain.wiring.factors, strict=True)):
        if not chain.wiring.is_view:
            x = _ordered(x, factor.order)
        g = chain.geometry
        if position == 0 and g != ChainGeometry():
            x = F.conv2d(x, weight, None, g.stride, g.padding, g.dilation, groups=factor.groups)
            continue
        slow, fast = (factor.slow, factor.fast) if chain.wiring.is_view else (factor.groups, 1)
        x = contract(x, weight.view(slow, fast, factor.members_out, factor.members_in))
    return x if chain.wiring.is_view else _ordered(x, chain.wiring.final_order)


def by_dense(x: Tensor, chain: Chain) -> Tensor:
    """Run one dense convolution with the composite kernel."""
    g = chain.geometry
    if torch.is_grad_enabled() and any(weight.requires_grad for weight in chain.weights):
        kernel = dense_kernel(list(chain.weights), chain.wiring)
    else:
        layout = torch.channels_last if onednn.is_channels_last(x) else torch.contiguous_format
        kernel = onednn.kept(
            chain,
            list(chain.weights),
            ("dense", layout),
            lambda: _composite(chain).contiguous(memory_format=layout),
        )
    return F.conv2d(x, kernel, None, g.stride, g.padding, g.dilation)


def by_packed(x: Tensor, chain: Chain, *, in_pieces: bool = False) -> Tensor:
    """Run grouped convolutions on packed weights, all images at once or a piece of the batch at a time."""
    _check_packable(x, chain, "packed")
    factors = chain.wiring.factors
    settings = [
        _settings(chain.geometry if position == 0 else ChainGeometry(), factor.groups)
        for position, factor in enumerate(factors)
    ]

    def pack() -> list[Tensor]:
        packed = []
        for position, (weight, factor, given) in enumerate(zip(chain.weights, factors, settings, strict=True)):
            like = x if position == 0 else _like_output(x, factor.in_channels, chain.geometry)
            packed.append(onednn.pack(weight, like, **given))
        return packed

    weights = onednn.kept(chain, list(chain.weights), ("packed", tuple(x.shape)), pack)

    def piece(x: Tensor) -> Tensor:
        for weight, factor, given in zip(weights, factors, settings, strict=True):
            x = onednn.packed_convolution(_shuffled(x, factor.order), weight, **given)
        return _shuffled(x, chain.wiring.final_order)

    largest = max(max(factor.in_channels, factor.out_channels) for factor in factors)
    room = onednn.PIECE_BYTES * torch.get_num_threads()
    step = max(1, room // (largest * x.shape[2] * x.shape[3] * x.element_size()))
    if not in_pieces or step >= len(x):
        return piece(x)
    first = piece(x[:step])
    out = torch.empty((len(x), *first.shape[1:]), dtype=x.dtype, memory_format=torch.channels_last)
    out[:step] = first
    for start in range(step, len(x), step):
        out[start : start + step] = piece(x[start : start + step])
    return out


def _like_output(x: Tensor, channels: int, g: ChainGeometry) -> Tensor:
    """Return a storage-free tensor shaped like the first factor's output."""
    sides = [(n + 2 * g.padding - g.dilation * (g.kernel_size - 1) - 1) // g.stride + 1 for n in x.shape[2:]]
    return x.new_empty(()).expand(len(x), channels, *sides)


def by_packed_dense(x: Tensor, chain: Chain) -> Tensor:
    """Run one dense convolution on the packed composite kernel."""
    _check_packable(x, chain, "packed-dense")
    given = _settings(chain.geometry, 1)
    name = ("packed-dense", tuple(x.shape))
    packed = onednn.kept(chain, list(chain.weights), name, lambda: onednn.pack(_composite(chain), x, **given))
    return onednn.packed_convolution(x, packed, **given)


BACKENDS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "group": by_group,
    "matmul": by_matmul,
    "dense": by_dense,
    "packed": by_packed,
    "packed-pieces": functools.partial(by_packed, in_pieces=True),
    "packed-dense": by_packed_dense,
}


def run_chain(chain: Any, x: Tensor) -> Tensor:
    """Run ``chain`` on ``x`` by its own backend, or by the measured one where that is ``auto``."""
    name = chain.backend if chain.backend != "auto" else _chosen(x, chain)
    return BACKENDS[name](x, chain)


def candidates(x: Tensor, chain: Chain) -> tuple[str, ...]:
    """Return the backends that can run ``x`` here."""
    names = ["group", "matmul", "dense"]
    if _packing_obstacle(x, chain) is None:
        names += ["packed", "packed-pieces", "packed-dense"]
    return tuple(names)


# ------------------------------------------------------------------ the measured choice

_CHOICES: dict[tuple[Any, ...], str] = {}


def choices() -> dict[tuple[Any, ...], str]:
    """Return a copy of what ``auto`` has chosen in this process, by everything the choice depends on."""
    return dict(_CHOICES)


def forget_choices() -> None:
    """Measure again from now on (after a change of the machine's load, for one)."""
    _CHOICES.clear()


def _chosen(x: Tensor, chain: Chain) -> str:
    if onednn.is_traced(x):
        return "group"
    gradient = _needs_gradient(x, chain)
    autocast = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
    key = (
        chain.wiring,
        chain.geometry,
        tuple(x.shape),
        x.dtype,
        autocast,
        x.device,
        onednn.is_channels_last(x),
        gradient,
        torch.get_num_threads(),
    )
    if key not in _CHOICES:
        _CHOICES[key] = min(measure(x, chain).items(), key=lambda item: item[1])[0]
    return _CHOICES[key]


def measure(x: Tensor, chain: Chain, *, rounds: int = 12, limit: float = 0.25) -> dict[str, float]:
    """Return the median time of every candidate on ``x``, in turn; forward and backward where gradients flow.

    The median and not the minimum: inside a network a backend rarely meets the warm caches of its best run (measured
    at C = 1024, where the shortest time chose a backend twice as slow as another on average).

    Stops after ``rounds`` rounds, or after four once ``limit`` seconds have passed.
    """
    names = candidates(x, chain)
    gradient = _needs_gradient(x, chain)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    start = _now(x.device)
    for repetition in range(rounds + 1):
        if repetition > 4 and _now(x.device) - start > limit:
            break
        for name in names:
            began = _now(x.device)
            if gradient:
                y = BACKENDS[name](x.detach().requires_grad_(), chain)
                torch.autograd.grad(y.sum(), [w for w in chain.weights if w.requires_grad] or [y], allow_unused=True)
            else:
                BACKENDS[name](x, chain)
            taken = _now(x.device) - began
            if repetition:
                seconds[name].append(taken)
    return {name: statistics.median(taken) for name, taken in seconds.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _needs_gradient(x: Tensor, chain: Chain) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in chain.weights))


def _composite(chain: Chain) -> Tensor:
    with torch.no_grad():
        return dense_kernel([weight.detach() for weight in chain.weights], chain.wiring)


def _settings(g: ChainGeometry, groups: int) -> dict[str, Any]:
    return {"groups": groups, "stride": [g.stride] * 2, "padding": [g.padding] * 2, "dilation": [g.dilation] * 2}


def _shuffled(x: Tensor, order: Order | None) -> Tensor:
    if order is None:
        return x
    if order.dims == (1, 0):
        return torch.native_channel_shuffle(x, order.view[0])  # vectorised for channels_last; no gradient needed here
    return order(x)


def _packing_obstacle(x: Tensor, chain: Chain) -> str | None:
    found = onednn.obstacle(x, list(chain.weights))
    return "the input is not channels_last" if found is None and not onednn.is_channels_last(x) else found


def _check_packable(x: Tensor, chain: Chain, name: str) -> None:
    found = _packing_obstacle(x, chain)
    if found is not None:
        raise InvalidArgument(
            f"the backend {name!r} runs float32 channels_last images on a CPU without gradients",
            given=found,
            mend="use backend='auto', or torch.no_grad() and x.contiguous(memory_format=torch.channels_last)",
        )
