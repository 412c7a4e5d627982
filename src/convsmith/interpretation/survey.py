"""Watch one forward pass: which modules run, in what order, with what shapes, and what follows what."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from convsmith.errors import InvalidArgument

_ADDITIONS = {
    torch.add,
    torch.Tensor.add,
    torch.Tensor.add_,
    torch.Tensor.__add__,
    torch.Tensor.__radd__,
    torch.Tensor.__iadd__,
}
_ACTIVATIONS = {
    torch.relu,
    torch.relu_,
    torch.Tensor.relu,
    torch.Tensor.relu_,
    nn.functional.relu,
    nn.functional.relu_,
    nn.functional.relu6,
    nn.functional.leaky_relu,
    nn.functional.elu,
    nn.functional.gelu,
    nn.functional.silu,
    nn.functional.hardswish,
    nn.functional.mish,
}


@dataclass(eq=False)
class Call:
    """One call of one module: ``index`` counts the calls of the same module, ``order`` is its place by completion."""

    name: str
    module: nn.Module
    index: int
    parents: tuple[Call, ...]
    order: int = -1
    shape: tuple[int, ...] | None = None
    input_shape: tuple[int, ...] | None = None
    adds: bool = False
    source: Call | None = None
    followers: list[str] = field(default_factory=list)
    output: Any = None


@dataclass(frozen=True)
class Survey:
    """All completed calls in order of completion, and the modules that call an activation as a function."""

    calls: tuple[Call, ...]
    functional: tuple[str, ...]
    rows: int

    def count(self, module: nn.Module) -> int:
        """Return how often ``module`` ran."""
        return sum(call.module is module for call in self.calls)


def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain module inside DataParallel, DistributedDataParallel and `torch.compile` wrappers.

    The inner module holds the same parameters; gates need neither gradient exchange nor replicas.

    Raises:
        InvalidArgument: for a scripted module or a sharded one, whose layers cannot be hooked.
    """
    while True:
        kind = type(model).__name__
        if isinstance(model, torch.jit.ScriptModule):
            raise InvalidArgument(
                "a scripted module cannot be gated: its layers run inside TorchScript, out of reach of hooks",
                given=kind,
                hint="pass the eager model it was scripted from",
            )
        if "FullyShardedDataParallel" in kind or kind.startswith("FSDP"):
            raise InvalidArgument(
                "a fully sharded model cannot be gated: its parameters are gathered layer by layer",
                given=kind,
                hint="gather the state dict into an unsharded copy and pass that",
            )
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]  # torch.compile's OptimizedModule
        else:
            return model


def check_evaluation(model: nn.Module) -> None:
    """Refuse a model whose output for one image depends on the batch or on chance.

    Raises:
        InvalidArgument: names the first module that is in training mode or normalises with batch statistics.
    """
    chosen: tuple[str, nn.Module] | None = None
    for name, module in model.named_modules():
        batch_dependent = isinstance(
            module, nn.modules.batchnorm._BatchNorm | nn.modules.dropout._DropoutNd
        ) or hasattr(module, "drop_prob")
        if module.training and (chosen is None or batch_dependent):
            chosen = (name or "the model itself", module)
            if batch_dependent:
                break
    if chosen is not None:
        raise InvalidArgument(
            "routes are defined for a network in evaluation mode (in training mode the rows of a batch influence "
            "each other, or chance does)",
            given=f"{chosen[0]} ({type(chosen[1]).__name__}) is in training mode",
            hint="call model.eval() first",
        )
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise InvalidArgument(
                "a BatchNorm without running statistics normalises by the batch even in evaluation mode",
                given=f"{name} ({type(module).__name__}, track_running_stats=False)",
                hint="train with running statistics, or replace it by GroupNorm",
            )


@contextmanager
def eager(model: nn.Module) -> Iterator[None]:
    """Run modules that were compiled in place (``module.compile()``) eagerly, so that hooks are called."""
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()):
        with torch.compiler.set_stance("force_eager"):
            yield
    else:
        yield


class _Functions(TorchFunctionMode):
    """Tell a listener about every torch function call (functional activations and residual additions)."""

    def __init__(self, listener: Callable[[Any, tuple[Any, ...]], None]) -> None:
        super().__init__()
        self.listener = listener

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.listener(func, args)
        return func(*args, **(kwargs or {}))


def survey(model: nn.Module, images: Tensor) -> Survey:
    """Run ``model`` once on two rows of ``images`` and record every module call.

    All hooks are gone when this returns or raises. Two rows, so that a first dimension of 2 means "batch".
    """
    pair = images[:2] if len(images) > 1 else images[:1].repeat(2, *([1] * (images.dim() - 1)))
    stack: list[Call] = []
    done: list[Call] = []
    counts: dict[nn.Module, int] = {}
    makers: dict[int, Call] = {}
    functional: list[str] = []
    handles = []

    def follow(tensor: Any, follower: str) -> None:
        maker = makers.get(id(tensor))
        if maker is not None:
            maker.followers.append(follower)

    def before(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            call = Call(name, module, counts.get(module, 0), tuple(stack))
            counts[module] = call.index + 1
            if args and isinstance(args[0], Tensor):
                call.input_shape = tuple(args[0].shape)
                call.source = makers.get(id(args[0]))
                follow(args[0], type(module).__name__)
            stack.append(call)

        return hook

    def after(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> None:
        call = stack.pop()
        call.order = len(done)
        done.append(call)
        if isinstance(output, Tensor):
            call.shape = tuple(output.shape)
            makers[id(output)] = call
            call.output = output  # kept alive so that ids stay unique during the pass

    def listen(func: Any, args: tuple[Any, ...]) -> None:
        if func in _ADDITIONS and stack and len(args) > 1:
            a, b = args[0], args[1]
            if isinstance(a, Tensor) and isinstance(b, Tensor) and a.dim() >= 3 and a.shape == b.shape:
                stack[-1].adds = True
        elif func in _ACTIVATIONS and stack and args:
            follow(args[0], "ReLU" if "relu" in getattr(func, "__name__", "") else "Activation")
            if not is_activation(stack[-1].module):
                functional.append(stack[-1].name or type(model).__name__)

    try:
        for name, module in model.named_modules():
            handles.append(module.register_forward_pre_hook(before(name)))
            handles.append(module.register_forward_hook(after))
        with torch.no_grad(), eager(model), _Functions(listen):
            model(pair)
    finally:
        for handle in handles:
            handle.remove()
    for call in done:
        call.output = None
    return Survey(tuple(done), tuple(dict.fromkeys(functional)), 2)


def is_activation(module: nn.Module) -> bool:
    """Tell whether ``module`` is a pointwise activation of features (gates such as sigmoid and softmax are not)."""
    kind = type(module)
    if any(word in kind.__name__ for word in ("Sigmoid", "Softmax", "Multihead", "BatchNormAct", "NormAct")):
        return False
    return kind.__module__ == "torch.nn.modules.activation" or ".layers.activations" in kind.__module__
