"""How to run somebody's network and leave it as it was: evaluation mode, compiled modules, wrappers around it."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from convsmith.arguments import checked
from convsmith.errors import InvalidArgument
from convsmith.inspection.outputs import output_tensors

#: normalisations that may use the statistics of the batch, and all modules that act by chance
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)


@checked
@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put ``model`` in evaluation mode; every module gets its own mode back, also after an exception.

    A module that does more than set its flag (an exported graph switches its operators) is asked through its own
    ``train``. Gradients are the caller's business: add `torch.no_grad` where none are needed.

    Examples:
        >>> with evaluating(model.train()):
        ...     print(model.training)
        False
    """
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            if module.training != mode and type(module).train is not nn.Module.train:
                module.train(mode)
        for module, mode in modes:
            module.training = mode


def copied(model: nn.Module, shared: Iterable[Tensor] = ()) -> Any:
    """Return a deep copy of ``model`` that keeps the tensors ``shared`` themselves.

    A network may keep what its forward made with gradients on (LeViT and EfficientFormer keep biases of attention),
    which torch refuses to copy; the copy keeps its values.
    """
    memo: dict[int, Any] = {id(tensor): tensor for tensor in shared}
    for module in model.modules():
        for tensor in output_tensors({name: kept for name, kept in vars(module).items() if name != "_modules"}):
            if not tensor.is_leaf:
                memo[id(tensor)] = tensor.detach().clone()
    return copy.deepcopy(model, memo)


@contextmanager
def watching(model: nn.Module, hooks: Mapping[str, Callable[..., Any]], *, before: bool = False) -> Iterator[None]:
    """Evaluate without gradients, ``hooks`` on the modules named (``before`` they run), and take them off again."""
    with ExitStack() as stack:
        for name, hook in hooks.items():
            module = model.get_submodule(name)
            register = module.register_forward_pre_hook if before else module.register_forward_hook
            stack.enter_context(register(hook))
        with evaluating(model), torch.no_grad():
            yield


def is_hooked(module: nn.Module) -> bool:
    """Return whether the module carries a forward hook."""
    with (
        module.register_forward_pre_hook(lambda *_: None) as before,
        module.register_forward_hook(lambda *_: None) as after,
    ):
        return any(len(handle.hooks_dict_ref() or ()) > 1 for handle in (before, after))


@checked
def unwrap(model: nn.Module) -> nn.Module:
    """Return the plain module inside DataParallel, DistributedDataParallel, AveragedModel and `torch.compile` wrappers.

    Raises `InvalidArgument` for a scripted module or a sharded one, whose layers cannot be hooked.

    Examples:
        >>> unwrap(nn.DataParallel(model)) is model
        True
    """
    while True:
        kind = type(model).__name__
        if isinstance(model, torch.jit.ScriptModule):
            rule = "a scripted module cannot be looked into: its layers run inside TorchScript, out of reach of hooks"
            raise InvalidArgument(rule, argument="model", given=kind, hint="pass the eager model it was scripted from")
        if "FullyShardedDataParallel" in kind or kind.startswith("FSDP"):
            rule = "a fully sharded model cannot be looked into: its parameters are gathered layer by layer"
            hint = "gather the state dict into an unsharded copy and pass that"
            raise InvalidArgument(rule, argument="model", given=kind, hint=hint)
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel | AveragedModel):
            model = model.module
        elif kind == "OptimizedModule":  # torch.compile's wrapper: one child
            model = next(model.children())
        else:
            return model


@contextmanager
def eager() -> Iterator[None]:
    """Run modules that were compiled in place (``module.compile()``) eagerly, so that hooks are called.

    Examples:
        >>> with eager():
        ...     features = model(images)
    """
    # nothing can have been compiled before dynamo is imported, and setting the stance would import it (seconds)
    with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext():
        yield


@checked
def check_evaluation(model: nn.Module) -> None:
    """Refuse a model whose output for one image depends on the batch or on chance, and name the module at fault.

    Examples:
        >>> check_evaluation(model.eval())  # silent: its output for one image depends on that image alone
    """
    model = unwrap(model)
    training = [(name, module) for name, module in model.named_modules() if module.training]
    if training:
        telling = [(n, m) for n, m in training if isinstance(m, (*BATCH_NORMS, *_DROPOUTS)) or hasattr(m, "drop_prob")]
        name, module = (telling or training)[0]
        raise InvalidArgument(
            "routes are defined for a network in evaluation mode (in training mode the rows of a batch influence "
            "each other, or chance does)",
            given=f"{name or 'the model itself'} ({type(module).__name__}) is in training mode",
            hint="call model.eval() first",
        )
    for name, module in model.named_modules():
        if isinstance(module, BATCH_NORMS) and module.running_mean is None:
            rule = "a BatchNorm without running statistics normalises by the batch even in evaluation mode"
            given = f"{name} ({type(module).__name__}, track_running_stats=False)"
            raise InvalidArgument(rule, given=given, hint="train with running statistics, or replace it by GroupNorm")
