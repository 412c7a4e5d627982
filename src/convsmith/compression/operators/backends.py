"""Ways to run a chain of group convolutions; all give the same numbers, none is the fastest everywhere.

==================  ==================================================================================================
``group``           the definition: grouped convolutions with channel shuffles between (exports without a gather)
``matmul``          shuffle-free: a factor contracts one axis of the view ``[slow, K, fast]`` as a batched product
``matmul-pieces``   batched products and shuffles a piece of the batch at a time, in memory used again, channels first
``dense``           the composite kernel, computed once per weight version, in one dense convolution
``packed``          grouped convolutions on weights packed once for oneDNN, channels_last
``packed-pieces``   the same, a piece of the batch at a time whose activations stay in the cache
``packed-dense``    the composite kernel packed once for oneDNN, channels_last
==================  ==================================================================================================

``matmul-pieces`` and the packed ones need a CPU and no gradient, the packed ones also float32 and channels_last.
``auto`` measures the candidates once per chain, input shape, layout, device, thread number and gradient mode and
remembers the choice for the life of the process. The dense layer is always among them and stays the choice unless
another one beats it clearly (`choose`). While a graph is traced, compiled, exported or counted, ``auto`` is ``group``.
"""

from __future__ import annotations

import functools
import statistics
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.compression.operators import buffers, onednn, pieces
from convsmith.compression.operators.contraction import contract
from convsmith.compression.operators.geometry import ChainGeometry
from convsmith.compression.operators.wiring import Order, Wiring
from convsmith.errors import InvalidArgument


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
        if position == 0 and not g.is_pointwise:
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


def by_matmul_pieces(x: Tensor, chain: Chain) -> Tensor:
    """Run batched products and shuffles, a piece of the batch at a time."""
    found = pieces.matmul_obstacle(x, list(chain.weights))
    if found is not None:
        raise InvalidArgument(
            "the backend 'matmul-pieces' runs contiguous images on a CPU without gradients",
            given=found,
            hint="use backend='auto', or torch.no_grad() and x.contiguous()",
        )
    return pieces.matmul_in_pieces(x, chain)


def by_packed(x: Tensor, chain: Chain, *, in_pieces: bool = False) -> Tensor:
    """Run grouped convolutions on packed weights, all images at once or a piece of the batch at a time."""
    _check_packable(x, chain, "packed")
    factors = chain.wiring.factors
    height, width = chain.geometry.output_size(x.shape[2:])
    step = _piece_size(x, chain) if in_pieces else len(x)
    settings = [
        _settings(chain.geometry if position == 0 else ChainGeometry(), factor.groups)
        for position, factor in enumerate(factors)
    ]

    def pack() -> list[Tensor]:
        packed = []
        for position, (weight, factor, given) in enumerate(zip(chain.weights, factors, settings, strict=True)):
            middle = x.new_empty(()).expand(step, factor.in_channels, height, width)  # only its shape is looked at
            packed.append(onednn.pack(weight, middle if position else x[:step], **given))
        return packed

    weights = onednn.kept(chain, list(chain.weights), ("packed", step, tuple(x.shape[1:])), pack)

    def piece(x: Tensor) -> Tensor:
        for weight, factor, given in zip(weights, factors, settings, strict=True):
            x = onednn.packed_convolution(_shuffled(x, factor.order), weight, **given)
        return _shuffled(x, chain.wiring.final_order)

    if step >= len(x):
        return piece(x)
    out = buffers.empty((len(x), chain.wiring.out_channels, height, width), x, torch.channels_last)
    for start in range(0, len(x), step):
        out[start : start + step] = piece(x[start : start + step])
    return out


def _piece_size(x: Tensor, chain: Chain) -> int:
    return pieces.piece_size(len(x), _largest_bytes(x, chain) // max(1, len(x)))


def _largest_bytes(x: Tensor, chain: Chain) -> int:
    """Return the bytes of the widest result of a factor, for the whole batch."""
    height, width = chain.geometry.output_size(x.shape[2:])
    largest = max(max(factor.in_channels, factor.out_channels) for factor in chain.wiring.factors)
    return len(x) * largest * height * width * x.element_size()


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
    "matmul-pieces": by_matmul_pieces,
    "dense": by_dense,
    "packed": by_packed,
    "packed-pieces": functools.partial(by_packed, in_pieces=True),
    "packed-dense": by_packed_dense,
}


def run_chain(chain: Any, x: Tensor) -> Tensor:
    """Run ``chain`` on ``x`` by its own backend, or by the chosen one where that is ``auto``."""
    name = chain.backend if chain.backend != "auto" else _chosen(x, chain)
    return BACKENDS[name](x, chain)


def candidates(x: Tensor, chain: Chain) -> tuple[str, ...]:
    """Return the backends that can run ``x`` here."""
    names = ["group", "matmul", "dense"]
    if pieces.matmul_obstacle(x, list(chain.weights)) is None:
        names.append("matmul-pieces")
    if _packing_obstacle(x, chain) is None:
        names += ["packed", "packed-pieces", "packed-dense"]
    return tuple(names)


# ------------------------------------------------------------------ the measured choice

#: how much faster than the dense layer another backend must be measured to be chosen
MARGIN = 0.05

_CHOICES: dict[tuple[Any, ...], str] = {}
#: the last few choices of every chain by what changes from call to call, so that a small layer does not wait for a hash
_RECENT: weakref.WeakKeyDictionary[Any, dict[tuple[Any, ...], str]] = weakref.WeakKeyDictionary()


def choices() -> dict[tuple[Any, ...], str]:
    """Return a copy of what ``auto`` has chosen in this process, by everything the choice depends on."""
    return dict(_CHOICES)


def forget_choices() -> None:
    """Measure again from now on (after a change of the machine's load, for one)."""
    _CHOICES.clear()
    _RECENT.clear()


def _chosen(x: Tensor, chain: Chain) -> str:
    if onednn.is_traced(x):
        return "group"
    device = x.device
    autocast = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else None
    key = (
        x.shape,
        x.dtype,
        autocast,
        device,
        onednn.is_channels_last(x),
        x.is_contiguous(),
        onednn.needs_gradient(x, chain.weights),
        torch.get_num_threads(),
    )
    recent = _RECENT.setdefault(chain, {})
    if key not in recent:
        whole = (chain.wiring, chain.geometry, *key)
        if whole not in _CHOICES:
            _CHOICES[whole] = choose(measure(x, chain))
        if len(recent) >= 8:
            recent.clear()
        recent[key] = _CHOICES[whole]
    return recent[key]


def choose(seconds: Mapping[str, float]) -> str:
    """Return the fastest backend; the dense layer where none beats it by more than `MARGIN`."""
    fastest = min(seconds, key=seconds.__getitem__)
    return fastest if seconds[fastest] < (1 - MARGIN) * seconds["dense"] else "dense"


def measure(x: Tensor, chain: Chain, *, rounds: int = 12, limit: float = 0.25) -> dict[str, float]:
    """Return the seconds of every candidate on ``x``, all in turn; forward and backward where gradients flow.

    A candidate counts by the slower of two medians, of the even and of the odd rounds, the dense layer by the faster
    one: an unsteady candidate is not chosen for its good moments. (Medians and not minima: inside a network a backend
    rarely meets the warm caches of its best run.) After two rounds, those that took more than three times as long as
    the fastest leave, except the dense layer; their time is that of these rounds. Stops after ``rounds`` further
    rounds, or after six once ``limit`` seconds have passed.

    Where the intermediate results are large and a candidate that works in pieces can run, those that make them for the
    whole batch are left out (the dense layer makes none): they are fast only while the C library keeps their pages.
    """
    names = _contenders(x, chain)
    gradient = onednn.needs_gradient(x, chain.weights)

    def once(name: str) -> float:
        began = _now(x.device)
        if gradient:
            y = BACKENDS[name](x.detach().requires_grad_(), chain)
            torch.autograd.grad(y.sum(), [w for w in chain.weights if w.requires_grad] or [y], allow_unused=True)
        else:
            BACKENDS[name](x, chain)
        return _now(x.device) - began

    early = {name: min(once(name), once(name)) for name in names}
    bound = 3 * min(early.values())
    names = [name for name in names if name == "dense" or early[name] <= bound]
    taken: dict[str, list[float]] = {name: [] for name in names}
    start = _now(x.device)
    for repetition in range(rounds):
        if repetition >= 6 and _now(x.device) - start > limit:
            break
        for name in names:
            taken[name].append(once(name))
    found = dict(early)
    for name, row in taken.items():
        halves = [statistics.median(row[first::2]) for first in (0, 1)]
        found[name] = min(halves) if name == "dense" else max(halves)
    return found


def _contenders(x: Tensor, chain: Chain) -> list[str]:
    names = list(candidates(x, chain))
    in_pieces = [name for name in names if name.endswith("-pieces")]
    if in_pieces and _piece_size(x, chain) < len(x) and _largest_bytes(x, chain) >= buffers.SMALLEST_BYTES:
        return [name for name in names if name in in_pieces or name.endswith("dense")]
    return [name for name in names if name != "packed-pieces"]  # the whole batch is one piece


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _composite(chain: Chain) -> Tensor:
    with torch.no_grad():
        return dense_kernel([weight.detach() for weight in chain.weights], chain.wiring)


def _settings(g: ChainGeometry, groups: int) -> dict[str, Any]:
    return {"groups": groups, "stride": g.stride, "padding": g.padding, "dilation": g.dilation}


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
            hint="use backend='auto', or torch.no_grad() and x.contiguous(memory_format=torch.channels_last)",
        )
