"""What a network costs: parameters, multiply-accumulates, activations and memory traffic, by layer and in total.

The operators are counted as they are dispatched, with the formulas of ``torch.utils.flop_counter``, so a grouped
convolution, a batched matrix product or a functional call inside a ``forward`` costs what it really does. Nothing is
computed: the network runs on fake tensors of the asked size.

Conventions. One MAC is one multiplication with its addition (half of torch's FLOP). Normalisation, activations and
pooling count no MACs; they do count in the traffic.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from convsmith.errors import InvalidArgument, close_matches

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

#: name of a parameter convention -> (norm affine, biases, classifier weights) counted beside the other weights
CONVENTIONS: dict[str, tuple[bool, bool, bool]] = {
    "full": (True, True, True),
    "no-norm": (False, True, True),
    "weights": (False, False, True),
    "no-classifier": (True, True, False),
    "conv": (False, False, False),
}


@dataclass(frozen=True)
class LayerCost:
    """One module's own share (children excluded): counts per forward pass, ``traffic`` in bytes."""

    name: str
    kind: str
    weights: int = 0
    biases: int = 0
    norm: int = 0
    macs: int = 0
    activations: int = 0
    traffic: int = 0
    is_classifier: bool = False

    @property
    def params(self) -> int:
        """Return all parameters of the layer."""
        return self.weights + self.biases + self.norm


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass.

    ``params``: all parameters, shared ones once. ``macs``: multiply-accumulates of convolutions and matrix products.
    ``activations``: elements these write. ``traffic``: bytes read and written by every operator that is not a view,
    unfused. ``by_layer``: the same by module name, in the order of ``named_modules``; a shared module stands once,
    with the work of all its calls.
    """

    params: int
    macs: int
    activations: int
    traffic: int
    by_layer: dict[str, LayerCost] = field(repr=False)

    def params_as(self, convention: str) -> int:
        """Return the parameters under one of `CONVENTIONS` (papers print all of them).

        ``full``: everything; ``no-norm``: without normalisation's affine; ``weights``: also without biases;
        ``no-classifier``: everything but the fully connected layers; ``conv``: convolution weights alone.
        """
        if convention not in CONVENTIONS:
            raise InvalidArgument(
                "no counting convention has this name", given=convention, hint=close_matches(convention, CONVENTIONS)
            )
        norm, bias, classifier = CONVENTIONS[convention]
        total = 0
        for layer in self.by_layer.values():
            if layer.is_classifier and not classifier:
                continue
            total += layer.weights + norm * layer.norm + bias * layer.biases
        return total


def cost(model: nn.Module, input_size: Sequence[int]) -> Cost:
    """Count what one evaluation-mode forward pass of ``model`` costs.

    Args:
        model: any module that takes one image tensor; it is left as it was (mode, weights, hooks).
        input_size: (C, H, W) for one image, or (B, C, H, W) for a whole batch (MACs then are those of the batch).

    Raises:
        InvalidArgument: if ``input_size`` is not three or four positive integers.
    """
    size = tuple(int(n) for n in input_size)
    if len(size) not in (3, 4) or any(n < 1 for n in size):
        raise InvalidArgument(
            "an input size has three or four positive numbers",
            argument="cost(model, input_size)",
            given=tuple(input_size),
            hint="(channels, height, width), or (batch, channels, height, width)",
        )
    if len(size) == 3:
        size = (1, *size)
    names = {id(module): name for name, module in model.named_modules()}
    counter = _run(model, size, names)

    shares: dict[str, LayerCost] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        weights = biases = norm = 0
        for key, parameter in module.named_parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            if isinstance(module, _NORMS):
                norm += parameter.numel()
            elif "bias" in key:
                biases += parameter.numel()
            else:
                weights += parameter.numel()
        macs, activations, traffic = counter.counts.get(name, (0, 0, 0))
        if weights or biases or norm or macs or traffic:
            shares[name] = LayerCost(
                name,
                type(module).__name__,
                weights,
                biases,
                norm,
                macs,
                activations,
                traffic,
                is_classifier=isinstance(module, nn.Linear),
            )
    layers = list(shares.values())
    return Cost(
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        activations=sum(layer.activations for layer in layers),
        traffic=sum(layer.traffic for layer in layers),
        by_layer=shares,
    )


def _run(model: nn.Module, size: tuple[int, ...], names: dict[int, str]) -> _Counter:
    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
    with _evaluating(model), torch.no_grad():
        if device.type == "meta":
            return _counted(model, torch.empty(size, dtype=dtype, device=device), names)
        try:
            with FakeTensorMode(allow_non_fake_inputs=True):
                return _counted(model, torch.empty(size, dtype=dtype, device=device), names)
        except RuntimeError:
            # operators without a fake form, or whose shapes depend on the data: the same count on real zeros
            return _counted(model, torch.zeros(size, dtype=dtype, device=device), names)


def _counted(model: nn.Module, images: Tensor, names: dict[int, str]) -> _Counter:
    counter = _Counter(names)
    with counter.following_modules(), counter:
        model(images)
    return counter


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


class _Counter(TorchDispatchMode):
    """Adds up, under the innermost running module, what every dispatched operator costs."""

    def __init__(self, names: dict[int, str]) -> None:
        super().__init__()
        self.names = names
        self.stack: list[str] = [""]
        self.counts: dict[str, tuple[int, int, int]] = {}

    @contextlib.contextmanager
    def following_modules(self) -> Iterator[None]:
        """Keep ``stack`` at the running modules; modules outside the model count for the one that calls them."""

        def enter(module: nn.Module, _: Any) -> None:
            self.stack.append(self.names.get(id(module), self.stack[-1]))

        def leave(_: nn.Module, __: Any, ___: Any) -> None:
            self.stack.pop()

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave, always_call=True)]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        packet = func._overloadpacket
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if packet not in flop_registry:
            with self:
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        out = func(*args, **kwargs)
        macs = activations = 0
        if packet in flop_registry:
            macs = int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2
            first = next(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
            activations = first.numel()
        traffic = 0
        if not func.is_view and packet is not torch.ops.aten.empty:
            moved = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
            traffic = sum(leaf.numel() * leaf.element_size() for leaf in moved)
        old = self.counts.get(self.stack[-1], (0, 0, 0))
        self.counts[self.stack[-1]] = (old[0] + macs, old[1] + activations, old[2] + traffic)
        return out
