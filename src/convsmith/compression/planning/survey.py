"""Look at a network before touching it: which layers can be compressed, what they cost, which must be left and why.

Every replacement rests on one assumption: the layer is used by calling it, and only so. The survey runs the network
once on an example and checks that: a weight read by a functional call, a layer class with a forward of its own, a
weight shared with another layer, a layer that never ran are all found and named, so no method changes them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convsmith.errors import InvalidArgument

#: a Conv2d, ConvTranspose2d or Linear; torch types the attributes of nn.Module too loosely to say so
Weighted: TypeAlias = Any

#: exact classes a method may replace (a subclass computes something else and is refused)
KINDS: dict[type[nn.Module], str] = {nn.Conv2d: "conv", nn.Linear: "linear", nn.ConvTranspose2d: "transposed"}
_HARMLESS = {"size", "dim", "numel", "is_floating_point", "is_contiguous", "stride", "element_size", "type", "__len__"}
_ALIASING = {"T", "mT", "H", "mH", "data", "grad", "real", "imag"}


@dataclass(frozen=True)
class Layer:
    """One weighted layer as the example met it.

    ``kind``: ``"conv"``, ``"linear"``, ``"transposed"`` or ``"other"``. Shapes include the example's batch (those of
    the first call). ``macs``: multiply-accumulates for one image, all calls. ``problem``: why no method may change it.
    """

    name: str
    module: Weighted = field(repr=False)
    kind: str
    calls: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    macs: int
    params: int
    problem: str | None = None

    @property
    def is_depthwise(self) -> bool:
        """Return whether every group holds one input channel."""
        groups = getattr(self.module, "groups", 1)
        return bool(groups > 1 and groups == self.module.in_channels)

    def channels(self, *, into: bool = False) -> int:
        """Return the width of the output, or of the input (``into``)."""
        if isinstance(self.module, nn.Linear):
            return int(self.module.in_features if into else self.module.out_features)
        return int(self.module.in_channels if into else self.module.out_channels)


@dataclass(frozen=True)
class Survey:
    """All weighted layers of a network in the order they first ran; ``output`` is what the example gave.

    ``real``: the example holds images of the user's; else it is noise of the right shape, good for shapes only.
    """

    layers: tuple[Layer, ...]
    example: Tensor = field(repr=False)
    output: Tensor = field(repr=False)
    real: bool = True

    def usable(self, *kinds: str, skip: tuple[str, ...] = ()) -> tuple[Layer, ...]:
        """Return the layers of ``kinds`` without a problem and not in ``skip``."""
        return tuple(x for x in self.layers if x.problem is None and x.kind in kinds and x.name not in skip)

    def refused(self) -> dict[str, str]:
        """Return the reason by layer name for every layer that must be left alone."""
        return {layer.name: layer.problem for layer in self.layers if layer.problem is not None}

    def by_name(self) -> dict[str, Layer]:
        """Return the layers by name."""
        return {layer.name: layer for layer in self.layers}


def survey(model: nn.Module, example: Tensor, *, real: bool = True) -> Survey:
    """Run ``model`` once on ``example`` [B, C, H, W] in evaluation mode and describe every weighted layer.

    Raises:
        InvalidArgument: the network does not run on the example or does not return one tensor.
    """
    owners = _owners(model)
    watch = _Watch(_names_by_weight(owners))
    shapes: dict[str, list[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    with evaluating(model), torch.no_grad(), watch.following({x.name: x.module for x in owners}, shapes):
        try:
            with watch:
                output = model(example)
        except Exception as error:
            raise InvalidArgument(
                "the network must run on the example",
                given=f"example {tuple(example.shape)}, and the network raised {type(error).__name__}: {error}",
                hint="pass example=, one batch of images as the network expects them",
            ) from error
    if not isinstance(output, Tensor):
        raise InvalidArgument(
            "the network must return one tensor",
            given=type(output).__name__,
            hint="wrap it in a module that returns the logits",
        )
    order = {name: i for i, name in enumerate(shapes)}
    layers = [_describe(owner, shapes.get(owner.name, []), watch.functional) for owner in owners]
    layers.sort(key=lambda layer: order.get(layer.name, len(order)))
    return Survey(tuple(layers), example, output, real)


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put every module in evaluation mode and give each its own mode back afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    for module, _ in modes:
        module.training = False
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def replace(model: nn.Module, name: str, new: nn.Module) -> None:
    """Put ``new`` wherever the module called ``name`` sits (a shared module sits in several places), in place.

    The new module takes over the training mode of the old one.
    """
    old = model.get_submodule(name)
    new.train(old.training)
    for parent in list(model.modules()):
        for key, child in list(parent._modules.items()):
            if child is old:
                parent._modules[key] = new


@dataclass
class _Owner:
    name: str
    module: nn.Module
    weight: Tensor
    tied: list[str]


def _owners(model: nn.Module) -> list[_Owner]:
    """Return every module that holds a weight matrix or kernel, with the names of those that hold the same one."""
    owners: list[_Owner] = []
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if not isinstance(module, tuple(KINDS)) and not (weight is not None and weight.dim() >= 2):
            continue
        if weight is None:
            weight = next(iter(module.parameters()), None)
        if weight is None:
            continue
        same = [other for other in owners if other.weight is weight]
        for other in same:
            other.tied.append(name)
        owners.append(_Owner(name, module, weight, [other.name for other in same]))
    return owners


def _names_by_weight(owners: list[_Owner]) -> dict[int, list[str]]:
    found: dict[int, list[str]] = {}
    for owner in owners:
        found.setdefault(id(owner.weight), []).append(owner.name)
    return found


class _Watch(TorchFunctionMode):
    """Notes every weight that enters a function while its own layer is not running."""

    def __init__(self, names: dict[int, list[str]]) -> None:
        super().__init__()
        self.names = names
        self.running: list[str] = []
        self.functional: set[str] = set()

    @contextlib.contextmanager
    def following(self, modules: dict[str, nn.Module], shapes: dict[str, Any]) -> Iterator[None]:
        """Keep ``running`` up to date and collect the shapes of every call by layer name."""
        handles = []

        def enter(name: str) -> Any:
            return lambda _module, _args: self.running.append(name)

        def leave(name: str) -> Any:
            def hook(_module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
                self.running.pop()
                if args and isinstance(args[0], Tensor) and isinstance(out, Tensor):
                    shapes.setdefault(name, []).append((tuple(args[0].shape), tuple(out.shape)))

            return hook

        for name, module in modules.items():
            handles.append(module.register_forward_pre_hook(enter(name)))
            handles.append(module.register_forward_hook(leave(name)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if name not in _HARMLESS and (name != "__get__" or attribute in _ALIASING):
            for value in (*_flat(args), *_flat(tuple((kwargs or {}).values()))):
                names = self.names.get(id(value), [])
                if names and not any(name in self.running for name in names):
                    self.functional.update(names)
        return func(*args, **(kwargs or {}))


def _flat(values: Any) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _flat(value)
        else:
            yield value


def _describe(owner: _Owner, calls: list[Any], functional: set[str]) -> Layer:
    module = owner.module
    kind = KINDS.get(type(module), "other")
    inner, outer = calls[0] if calls else ((), ())
    macs = sum(_macs(module, kind, a, b) for a, b in calls)
    params = sum(p.numel() for p in module.parameters(recurse=False))
    return Layer(
        owner.name, module, kind, len(calls), inner, outer, macs, params, _problem(owner, kind, calls, functional)
    )


def _problem(owner: _Owner, kind: str, calls: list[Any], functional: set[str]) -> str | None:
    module = owner.module
    if owner.tied:
        return f"its weight is shared with {', '.join(owner.tied)}"
    if owner.name in functional:
        return "its weight is also used by a function outside the layer's own call"
    if kind == "other":
        base = next((k.__name__ for k in KINDS if isinstance(module, k)), None)
        if base:
            return f"{type(module).__name__} is a {base} with a forward of its own"
        return f"{type(module).__name__} is not a convolution or fully connected layer"
    if not calls:
        return "the example never ran it"
    if module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return "it carries hooks or a replaced forward, which a new layer would lose"
    return None


def _macs(module: Weighted, kind: str, inner: tuple[int, ...], outer: tuple[int, ...]) -> int:
    """Return the multiply-accumulates of one call for one image."""
    if kind == "linear":
        return module.in_features * _product(outer[1:])
    if kind == "conv":
        return module.weight[0].numel() * _product(outer[1:])
    if kind == "transposed":
        return module.weight[0].numel() * _product(inner[1:])
    return 0


def _product(values: tuple[int, ...]) -> int:
    total = 1
    for value in values:
        total *= value
    return total
