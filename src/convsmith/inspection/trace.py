"""One pass through a network, watched: which modules run, in what order, with what shapes, and who reads what.

Compression rests on one assumption: a layer is used by calling it, and only so. The trace checks it: a weight read by
a functional call, a layer class with a forward of its own, a weight shared with another layer, a layer that never ran
are all found and named. Interpretation needs the calls: what adds a shortcut, what an activation follows.
"""

from __future__ import annotations

import contextlib
import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convsmith.arguments import checked, spelled
from convsmith.errors import InvalidArgument
from convsmith.inspection.layers import KINDS, Call, Layer, LayerInventory, is_activation
from convsmith.inspection.modes import eager, evaluating, is_hooked
from convsmith.inspection.outputs import output_tensors

#: names of the functions and methods that add, and of those that are activations
_ADDITIONS = {"add", "add_", "__add__", "__radd__", "__iadd__"}
_ACTIVATIONS = {"relu", "relu_", "relu6", "leaky_relu", "elu", "gelu", "silu", "hardswish", "mish"}
#: functions and attributes that tell about a weight without computing with it, and those that hand it on
_HARMLESS = {"size", "dim", "numel", "is_floating_point", "is_contiguous", "stride", "element_size", "type", "__len__"}
_ALIASING = {"T", "mT", "H", "mH", "data", "grad", "real", "imag"}


@checked
def trace_layers(model: nn.Module, example: Tensor, *, real: bool = True) -> LayerInventory:
    """Run ``model`` once on ``example`` [B, C, H, W], in evaluation mode and without gradients, and say what happened.

    The model is a plain module (see `convsmith.inspection.modes.unwrap`) and may return anything; what it raises is
    passed on. ``real``: whether the example is more than noise of the right shape.

    Examples:
        >>> inventory = trace_layers(model, images)
    """
    if example.dim() == 0 or len(example) == 0:
        raise InvalidArgument("there is no image", argument="example", given=spelled(example))
    owners = _owners(model)
    watch = _Watch(type(model).__name__, owners)
    with evaluating(model), torch.no_grad(), eager(), watch.following(model), watch:
        output = model(example)
    by_module: dict[nn.Module, list[Call]] = {}
    for call in watch.done:
        if call.input_shape and call.shape:
            by_module.setdefault(call.module, []).append(call)
    owners.sort(key=lambda owner: by_module[owner.module][0].order if owner.module in by_module else math.inf)
    layers = tuple(_describe(x, by_module.get(x.module, []), watch, len(example)) for x in owners)
    seen = tuple(watch.done), tuple(watch.sums), tuple(dict.fromkeys(watch.functional))
    return LayerInventory(layers, *seen, example, output, real)


@dataclass
class _Owner:
    name: str
    module: nn.Module
    weight: Tensor


def _owners(model: nn.Module) -> list[_Owner]:
    """Return every module that holds a weight matrix or kernel."""
    owners: list[_Owner] = []
    for name, module in model.named_modules():
        weight = dict(module.named_parameters(recurse=False)).get("weight")
        ours = isinstance(module, tuple(KINDS))
        if ours and weight is None:
            weight = next(iter(module.parameters()), None)
        elif not ours and weight is not None and weight.dim() < 2:
            continue
        if weight is not None:
            owners.append(_Owner(name, module, weight))
    return owners


class _Watch(TorchFunctionMode):
    """Records every module call, and every weight that enters a function while its own layer is not running."""

    def __init__(self, model: str, owners: list[_Owner]) -> None:
        super().__init__()
        self.model = model
        #: id of a weight -> its layers
        self.owners: dict[int, list[_Owner]] = {}
        for owner in owners:
            self.owners.setdefault(id(owner.weight), []).append(owner)
        self.stack: list[Call] = []
        self.done: list[Call] = []
        self.counts: dict[nn.Module, int] = {}
        #: id of a living tensor -> a weak reference to it (ids are used again) and the call that made it
        self.makers: dict[int, tuple[weakref.ref[Tensor], Call]] = {}
        self.functional: list[str] = []
        self.sums: list[tuple[Call, Call]] = []
        self.read: set[str] = set()

    def maker(self, tensor: Any) -> Call | None:
        """Return the call that made ``tensor``."""
        reference, call = self.makers.get(id(tensor), (None, None))
        return call if reference is not None and reference() is tensor else None

    def follow(self, tensor: Any, follower: str) -> None:
        """Note that ``follower`` reads ``tensor``."""
        maker = self.maker(tensor)
        if maker is not None:
            maker.followers.append(follower)

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Record the calls of every module of ``model``."""
        with contextlib.ExitStack() as stack:
            for name, module in model.named_modules():
                stack.enter_context(module.register_forward_pre_hook(self._enter(name)))
                stack.enter_context(module.register_forward_hook(self._leave))
            yield

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            call = Call(name, module, self.counts.get(module, 0), tuple(self.stack))
            self.counts[module] = call.index + 1
            if args and isinstance(args[0], Tensor):
                call.input_shape = tuple(args[0].shape)
                call.source = self.maker(args[0])
                self.follow(args[0], type(module).__name__)
            self.stack.append(call)

        return hook

    def _leave(self, _module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call = self.stack.pop()
        call.order = len(self.done)
        self.done.append(call)
        if isinstance(output, Tensor):
            call.shape = tuple(output.shape)
            self.makers[id(output)] = weakref.ref(output), call

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        self._note_reading(func, name, (args, kwargs))
        if name in _ADDITIONS and self.stack and len(args) > 1:
            a, b = args[0], args[1]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() >= 3 and a.shape == b.shape:
                self.stack[-1].adds = True
                one, other = self.maker(a), self.maker(b)
                if one is not None and other is not None:
                    self.sums.append((one, other))
        elif name in _ACTIVATIONS and self.stack and args:
            self.follow(args[0], "ReLU" if "relu" in name else "Activation")
            if not is_activation(self.stack[-1].module):
                self.functional.append(self.stack[-1].name or self.model)
        return func(*args, **kwargs)

    def _note_reading(self, func: Any, name: str, read: Any) -> None:
        attribute = getattr(getattr(func, "__self__", None), "__name__", "")
        if name in _HARMLESS or (name == "__get__" and attribute not in _ALIASING):
            return
        running = {call.module for call in self.stack}
        for value in output_tensors(read):
            owners = self.owners.get(id(value), [])
            if owners and not any(owner.module in running for owner in owners):
                self.read.update(owner.name for owner in owners)


def _describe(owner: _Owner, calls: list[Call], watch: _Watch, images: int) -> Layer:
    module: Any = owner.module
    kind = KINDS.get(type(module), "other")
    shapes = [(call.input_shape or (), call.shape or ()) for call in calls]
    inner, outer = shapes[0] if shapes else ((), ())
    # a layer may run on windows of the images: its rows are not theirs
    each = module.weight.shape[1:].numel() if kind != "other" else 0
    macs = sum(each * math.prod((a if kind == "transposed" else b)[1:]) * b[0] // images for a, b in shapes if b)
    params = sum(p.numel() for p in module.parameters(recurse=False))
    return Layer(
        owner.name, module, kind, len(calls), inner, outer, macs, params, _problem(owner, kind, len(calls), watch)
    )


def _problem(owner: _Owner, kind: str, calls: int, watch: _Watch) -> str | None:
    module = owner.module
    if not owner.name:
        return "it is the whole network, and only a layer inside one can be replaced"
    tied = [other.name for other in watch.owners[id(owner.weight)] if other is not owner]
    if tied:
        return f"its weight is shared with {', '.join(tied)}"
    if owner.name in watch.read:
        return "its weight is also used by a function outside the layer's own call"
    if kind == "other":
        base = next((k.__name__ for k in KINDS if isinstance(module, k)), None)
        if base:
            return f"{type(module).__name__} is a {base} with a forward of its own"
        return f"{type(module).__name__} is not a convolution or fully connected layer"
    if not calls:
        return "the example never ran it"
    if is_hooked(module) or "forward" in vars(module):
        return "it carries hooks or a replaced forward, which a new layer would lose"
    return None
