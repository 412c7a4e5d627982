"""What one pass through a network shows: its calls in order, and its weighted layers with what they cost."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn

#: a Conv2d, ConvTranspose2d or Linear; torch types the attributes of nn.Module too loosely to say so
Weighted: TypeAlias = Any

#: exact classes a method may replace (a subclass computes something else and is skipped)
KINDS: dict[type[nn.Module], str] = {nn.Conv2d: "conv", nn.Linear: "linear", nn.ConvTranspose2d: "transposed"}


@dataclass(eq=False)
class Call:
    """One call of one module: ``index`` counts the calls of the same module, ``order`` is its place by completion.

    ``adds``: its own forward adds two maps of one shape. ``source``: the call that made its first input. ``followers``:
    class names of what reads its output, ``"ReLU"`` or ``"Activation"`` for a function.
    """

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
class LayerInventory:
    """What one pass on an example showed.

    ``layers``: all weighted layers in the order they first ran. ``calls``: all module calls in order of completion.
    ``sums``: the calls that made the two maps of one shape that were added, for every such sum.
    ``functional``: names of the modules that call an activation as a function. ``output``: what the example gave, any
    structure. ``real``: the example holds images of the user's; else it is noise of the right shape, good for shapes
    only.
    """

    layers: tuple[Layer, ...]
    calls: tuple[Call, ...] = field(repr=False)
    sums: tuple[tuple[Call, Call], ...] = field(repr=False)
    functional: tuple[str, ...]
    example: Tensor = field(repr=False)
    output: Any = field(repr=False)
    real: bool = True

    @property
    def rows(self) -> int:
        """Return the number of images of the example."""
        return len(self.example)

    def usable(self, *kinds: str, skip: tuple[str, ...] = ()) -> tuple[Layer, ...]:
        """Return the layers of ``kinds`` without a problem and not in ``skip``."""
        return tuple(x for x in self.layers if x.problem is None and x.kind in kinds and x.name not in skip)

    def skipped(self) -> dict[str, str]:
        """Return the reason by layer name for every layer that must be left alone."""
        return {layer.name: layer.problem for layer in self.layers if layer.problem is not None}

    def by_name(self) -> dict[str, Layer]:
        """Return the layers by name."""
        return {layer.name: layer for layer in self.layers}

    def count(self, module: nn.Module) -> int:
        """Return how often ``module`` ran."""
        return sum(call.module is module for call in self.calls)


def is_activation(module: nn.Module) -> bool:
    """Tell whether ``module`` is a pointwise activation of features (gates such as sigmoid and softmax are not)."""
    kind = type(module)
    if any(word in kind.__name__ for word in ("Sigmoid", "Softmax", "Multihead", "BatchNormAct", "NormAct")):
        return False
    return kind.__module__ == "torch.nn.modules.activation" or ".layers.activations" in kind.__module__
