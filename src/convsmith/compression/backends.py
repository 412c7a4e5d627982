"""Ways to run a chain of group convolutions; all give the same numbers, none is the fastest everywhere.

==============  ======================================================================================================
``group``       the definition: grouped convolutions with channel shuffles in between (exports without a gather)
``matmul``      shuffle-free: a factor contracts one axis of the view ``[slow, K, fast]`` as a batched matrix product
``dense``       the composite kernel, computed once per weight version, in one dense convolution
``packed``      grouped convolutions on weights packed once for oneDNN, channels_last, in pieces that stay in the cache
``packed-dense``  the composite kernel packed once for oneDNN, channels_last
==============  ======================================================================================================

The packed ones need a CPU, float32, channels_last and no gradient. ``auto`` measures the candidates once per chain,
input shape, layout, device, thread number and gradient mode and remembers the fastest for the life of the process;
the dense layer is always among them, so a chain is never slower than the layer it replaces by more than the noise of
the measurement. While a graph is traced, compiled, exported or counted, ``auto`` is ``group``.
"""

from __future__ import annotations

import functools
import math
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from convsmith.compression.contraction import contract
from convsmith.compression.wiring import Order, Wiring
from convsmith.errors import InvalidArgument

#: bytes of one piece of a batch in the packed backend: input, middle and output of a piece stay in a core's cache
PIECE_BYTES = 1 << 20


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
        layout = torch.channels_last if _is_channels_last(x) else torch.contiguous_format
        kernel = _kept(chain, f"dense {layout}", lambda: _composite(chain).contiguous(memory_format=layout))
    return F.conv2d(x, kernel, None, g.stride, g.padding, g.dilation)


def by_packed(x: Tensor, chain: Chain) -> Tensor:
    """Run grouped convolutions on packed weights, a piece of the batch at a time."""
    _check_packable(x, chain, "packed")
    factors = chain.wiring.factors

    def pack() -> list[Tensor]:
        return [
            _pack(weight.detach(), chain.geometry if position == 0 else ChainGeometry(), factor.groups, x)
            for position, (weight, factor) in enumerate(zip(chain.weights, factors, strict=True))
        ]

    packed = _kept(chain, f"packed {tuple(x.shape)}", pack)

    def piece(x: Tensor) -> Tensor:
        for position, (weight, factor) in enumerate(zip(packed, factors, strict=True)):
            g = chain.geometry if position == 0 else ChainGeometry()
            x = _packed_convolution(_shuffled(x, factor.order), weight, g, factor.groups)
        return _shuffled(x, chain.wiring.final_order)

    largest = max(max(factor.in_channels, factor.out_channels) for factor in factors)
    step = max(1, PIECE_BYTES // (largest * x.shape[2] * x.shape[3] * x.element_size()))
    if step >= len(x):
        return piece(x)
    first = piece(x[:step])
    out = torch.empty((len(x), *first.shape[1:]), dtype=x.dtype, memory_format=torch.channels_last)
    out[:step] = first
    for start in range(step, len(x), step):
        out[start : start + step] = piece(x[start : start + step])
    return out


def by_packed_dense(x: Tensor, chain: Chain) -> Tensor:
    """Run one dense convolution on the packed composite kernel."""
    _check_packable(x, chain, "packed-dense")
    packed = _kept(chain, f"packed-dense {tuple(x.shape)}", lambda: _pack(_composite(chain), chain.geometry, 1, x))
    return _packed_convolution(x, packed, chain.geometry, 1)


BACKENDS: dict[str, Callable[[Tensor, Any], Tensor]] = {
    "group": by_group,
    "matmul": by_matmul,
    "dense": by_dense,
    "packed": by_packed,
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
        names += ["packed", "packed-dense"]
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
    if _is_traced(x):
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
        _is_channels_last(x),
        gradient,
        torch.get_num_threads(),
    )
    if key not in _CHOICES:
        _CHOICES[key] = min(measure(x, chain).items(), key=lambda item: item[1])[0]
    return _CHOICES[key]


def measure(x: Tensor, chain: Chain, *, rounds: int = 4) -> dict[str, float]:
    """Return the shortest time in seconds of every candidate on ``x``; forward and backward where gradients flow."""
    names = candidates(x, chain)
    gradient = _needs_gradient(x, chain)
    seconds = dict.fromkeys(names, math.inf)
    for repetition in range(rounds + 1):
        for name in names:
            began = _now(x.device)
            if gradient:
                y = BACKENDS[name](x.detach().requires_grad_(), chain)
                torch.autograd.grad(y.sum(), [w for w in chain.weights if w.requires_grad] or [y], allow_unused=True)
            else:
                BACKENDS[name](x, chain)
            taken = _now(x.device) - began
            if repetition:
                seconds[name] = min(seconds[name], taken)
    return seconds


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _needs_gradient(x: Tensor, chain: Chain) -> bool:
    return torch.is_grad_enabled() and (x.requires_grad or any(weight.requires_grad for weight in chain.weights))


def _is_traced(x: Tensor) -> bool:
    """Whether operators are being recorded or counted instead of run, so that measuring would mean nothing."""
    return (
        torch.compiler.is_compiling()
        or torch.jit.is_tracing()
        or type(x) not in (Tensor, nn.Parameter)
        or x.device.type == "meta"
        or torch._C._functorch.peek_interpreter_stack() is not None
        or _get_current_dispatch_mode() is not None
    )


def _is_channels_last(x: Tensor) -> bool:
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


# ------------------------------------------------------------------ what is kept between calls

_KEPT: weakref.WeakKeyDictionary[Any, tuple[tuple[Any, ...], dict[str, Any]]] = weakref.WeakKeyDictionary()


def _kept(chain: Chain, name: str, make: Callable[[], Any]) -> Any:
    """Return ``make()``, kept until a weight of the chain is changed or replaced."""
    if any(weight.is_inference() for weight in chain.weights):
        return make()  # such weights do not count their changes
    version = tuple((id(weight), weight.data_ptr(), weight._version, weight.dtype) for weight in chain.weights)
    held = _KEPT.get(chain)
    if held is None or held[0] != version:
        held = (version, {})
        _KEPT[chain] = held
    if name not in held[1]:
        if len(held[1]) >= 8:
            held[1].clear()  # shapes that keep changing must not fill the memory
        held[1][name] = make()
    return held[1][name]


def _composite(chain: Chain) -> Tensor:
    with torch.no_grad():
        return dense_kernel([weight.detach() for weight in chain.weights], chain.wiring)


# ------------------------------------------------------------------ oneDNN with packed weights


@functools.cache
def packing_works() -> bool:
    """Whether this build of torch packs convolution weights for oneDNN, tried once on a small layer."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return False
    weight, x = torch.randn(8, 2, 1, 1), torch.randn(1, 8, 3, 3).contiguous(memory_format=torch.channels_last)
    try:
        y = _packed_convolution(x, _pack(weight, ChainGeometry(), 4, x), ChainGeometry(), 4)
    except RuntimeError:
        return False
    return torch.allclose(y, F.conv2d(x, weight, groups=4), rtol=1e-4, atol=1e-4)


def _pack(weight: Tensor, g: ChainGeometry, groups: int, x: Tensor) -> Tensor:
    return torch.ops.mkldnn._reorder_convolution_weight(
        weight.contiguous(memory_format=torch.channels_last),
        [g.padding] * 2,
        [g.stride] * 2,
        [g.dilation] * 2,
        groups,
        [1, weight.shape[1] * groups, *x.shape[2:]],
    )


def _packed_convolution(x: Tensor, packed: Tensor, g: ChainGeometry, groups: int) -> Tensor:
    return torch.ops.mkldnn._convolution_pointwise(
        x, packed, None, [g.padding] * 2, [g.stride] * 2, [g.dilation] * 2, groups, "none", [], ""
    )


def _shuffled(x: Tensor, order: Order | None) -> Tensor:
    if order is None:
        return x
    if order.dims == (1, 0):
        return torch.native_channel_shuffle(x, order.view[0])  # vectorised for channels_last; no gradient needed here
    return order(x)


def _packing_obstacle(x: Tensor, chain: Chain) -> str | None:
    if x.device.type != "cpu" or x.dtype != torch.float32 or any(w.dtype != torch.float32 for w in chain.weights):
        return f"{x.dtype} on {x.device.type}"
    if torch.is_autocast_enabled("cpu"):
        return "autocast"
    if _needs_gradient(x, chain):
        return "a gradient is needed"
    if not _is_channels_last(x):
        return "the input is not channels_last"
    return None if packing_works() else "this build of torch has no oneDNN convolution"


def _check_packable(x: Tensor, chain: Chain, name: str) -> None:
    obstacle = _packing_obstacle(x, chain)
    if obstacle is not None:
        raise InvalidArgument(
            f"the backend {name!r} runs float32 channels_last images on a CPU without gradients",
            given=obstacle,
            mend="use backend='auto', or torch.no_grad() and x.contiguous(memory_format=torch.channels_last)",
        )
