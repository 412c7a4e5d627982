"""Count the operations of one forward pass, by module: multiply-accumulates, what they write, what moves.

The operators are counted as they are dispatched, so a grouped convolution, a batched matrix product or a functional
call inside a ``forward`` costs what it really does. Nothing is computed: the network runs on fake tensors of the asked
size. Formulas: `convsmith.inspection.operators`.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode

from convsmith.arguments import checked
from convsmith.inspection.modes import copied, eager, evaluating
from convsmith.inspection.operators import has_rule, macs_of, operator_name
from convsmith.inspection.outputs import output_tensors


@dataclass
class Count:
    """One module's own share, children excluded; ``traffic`` in bytes read and written by operators but views."""

    macs: int = 0
    activations: int = 0
    traffic: int = 0


@dataclass(frozen=True)
class OperationCounts:
    """Counts by module name ("" is the model itself).

    ``uncounted``: operators without a known formula, with the names of the modules that call them; their work is in
    no total.
    """

    by_module: dict[str, Count] = field(default_factory=dict)
    uncounted: dict[str, tuple[str, ...]] = field(default_factory=dict)


@checked
def count_operations(model: nn.Module, size: tuple[int, ...], *, fake: bool = True) -> OperationCounts:
    """Count one pass of a batch of ``size`` (B, C, H, W) in evaluation mode; the model is left as it was.

    ``fake=False`` executes the pass on noise in [0, 1) instead, which every network gets whose operators have no fake
    form or whose shapes depend on the data.

    Examples:
        >>> count_operations(nn.Conv2d(3, 8, 3, bias=False), (1, 3, 10, 10)).by_module[""].macs
        13824
    """
    from torch._subclasses.fake_tensor import FakeTensorMode  # takes 0.4 s to import, and few who import us count

    tensors = [*model.parameters(), *model.buffers()]
    device = tensors[0].device if tensors else torch.device("cpu")
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.get_default_dtype())
    with contextlib.ExitStack() as stack, evaluating(model), torch.no_grad(), eager():
        # transformer layers run operator by operator: their fast path is one operator that hides its layers
        stack.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
        if device.type == "meta":
            return _counted(model, torch.empty(size, dtype=dtype, device=device))
        if fake:
            # an operator without a fake form, or a shape that depends on the data: execute
            with contextlib.suppress(RuntimeError):
                # a network may keep what its forward made, and what is made here is fake
                own = copied(model, shared=tensors)
                with FakeTensorMode(allow_non_fake_inputs=True):
                    return _counted(own, torch.empty(size, dtype=dtype, device=device))
        noise = torch.rand(size, generator=torch.Generator().manual_seed(0))
        return _counted(model, noise.to(device, dtype))


def _counted(model: nn.Module, images: Tensor) -> OperationCounts:
    counter = _Counter({module: name for name, module in model.named_modules()})
    with (
        register_module_forward_pre_hook(counter.enter),
        register_module_forward_hook(counter.leave, always_call=True),
        counter,
    ):
        model(images)
    uncounted = {name: tuple(sorted(modules)) for name, modules in sorted(counter.uncounted.items())}
    return OperationCounts(counter.counts, uncounted)


class _Counter(TorchDispatchMode):
    """Adds up, under the innermost running module, what every dispatched operator costs."""

    def __init__(self, names: dict[nn.Module, str]) -> None:
        super().__init__()
        self.names = names
        self.stack: list[str] = [""]
        self.counts: dict[str, Count] = {}
        self.uncounted: dict[str, set[str]] = {}

    def enter(self, module: nn.Module, _: Any) -> None:
        """Book what comes under ``module``; a module outside the model counts for the one that calls it."""
        self.stack.append(self.names.get(module, self.stack[-1]))

    def leave(self, *_: Any) -> None:
        """Go back to the module that called the one that ends."""
        self.stack.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":
            return func(*args, **kwargs)
        if not has_rule(func):
            with self:
                parts = func.decompose(*args, **kwargs)
                if parts is not NotImplemented:
                    return parts
        out = func(*args, **kwargs)
        count = self.counts.setdefault(self.stack[-1], Count())
        macs = macs_of(func, args, kwargs, out)
        if macs is None:
            self.uncounted.setdefault(operator_name(func), set()).add(self.stack[-1])
        elif macs:
            count.macs += macs
            count.activations += output_tensors(out)[0].numel()
        if not func.is_view and operator_name(func) != "aten::empty":
            moved = output_tensors((args, kwargs, out))
            count.traffic += sum(tensor.numel() * tensor.element_size() for tensor in moved)
        return out
