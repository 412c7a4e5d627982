"""What a network costs: parameters, multiply-accumulates, activations and memory traffic, by layer and in total.

Operations are counted by `convsmith.inspection.counting`. One MAC is one multiplication with its addition (half of
torch's FLOP). Normalisation, activations and pooling count no MACs; they do count in the traffic. A parameter is a
number that was learned: the codes of a quantised weight count wherever they lie, in a parameter or in a buffer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import Tensor, nn

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.inspection.counting import Count, count_operations
from convsmith.inspection.modes import BATCH_NORMS

_NORMS = (*BATCH_NORMS, nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)

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
    """One module's own share (children excluded): counts per forward pass, ``traffic`` and ``bytes`` in bytes."""

    name: str
    kind: str
    weights: int = 0
    biases: int = 0
    norm: int = 0
    macs: int = 0
    activations: int = 0
    traffic: int = 0
    bytes: int = 0
    is_classifier: bool = False

    @property
    def params(self) -> int:
        """Return all parameters of the layer."""
        return self.weights + self.biases + self.norm


@dataclass(frozen=True)
class Cost:
    """The cost of one forward pass.

    ``params``: all parameters, shared ones once, codes of quantised weights included. ``macs``: multiply-accumulates of
    everything that contracts. ``activations``: elements these write. ``traffic``: bytes read and written by every
    operator that is not a view, unfused. ``bytes``: what the parameters occupy. ``by_layer``: the same by module name,
    in the order of ``named_modules``; a shared module stands once, with the work of all its calls. ``uncounted``:
    operators whose MACs nobody knows (a decomposition that iterates, an operator of your own), each with the modules
    that call it; they are in no total.
    """

    params: int
    macs: int
    activations: int
    traffic: int
    bytes: int
    by_layer: dict[str, LayerCost] = field(repr=False)
    uncounted: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def params_as(self, convention: str) -> int:
        """Return the parameters under one of `CONVENTIONS` (papers print all of them).

        ``full``: everything; ``no-norm``: without normalisation's affine; ``weights``: also without biases;
        ``no-classifier``: everything but the fully connected layers; ``conv``: convolution weights alone.
        """
        arguments.one_of("convention", convention, tuple(CONVENTIONS))
        norm, bias, classifier = CONVENTIONS[convention]
        counted = [layer for layer in self.by_layer.values() if classifier or not layer.is_classifier]
        return sum(layer.weights + norm * layer.norm + bias * layer.biases for layer in counted)


@arguments.checked
def cost(model: nn.Module, input_size: Sequence[int]) -> Cost:
    """Count what one evaluation-mode forward pass of ``model`` costs.

    Args:
        model: any module that takes one image tensor; it is left as it was (mode, weights, hooks).
        input_size: (C, H, W) for one image, or (B, C, H, W) for a whole batch (MACs then are those of the batch).

    Raises:
        InvalidArgument: if ``input_size`` is not three or four positive integers.

    Examples:
        >>> cost(nn.Conv2d(3, 8, 3, bias=False), (3, 10, 10)).macs
        13824
    """
    sequence = isinstance(input_size, Sequence) and not isinstance(input_size, str)
    if not sequence or len(input_size) not in (3, 4) or any(not isinstance(n, int) or n < 1 for n in input_size):
        raise InvalidArgument(
            "an input size has three or four positive numbers",
            argument="input_size",
            given=arguments.spelled(input_size),
            hint="(channels, height, width), or (batch, channels, height, width)",
        )
    size = tuple(input_size)
    if len(size) == 3:
        size = (1, *size)
    counts = count_operations(model, size)
    shares: dict[str, LayerCost] = {}
    seen: set[int] = set()
    for name, module in model.named_modules():
        own = dict.fromkeys(("weights", "biases", "norm", "bytes"), 0)
        for key, tensor in [*module.named_parameters(recurse=False), *_codes(module)]:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            own["bytes"] += tensor.numel() * tensor.element_size()
            own["norm" if isinstance(module, _NORMS) else "biases" if "bias" in key else "weights"] += tensor.numel()
        work = counts.by_module.get(name, Count())
        if any(own.values()) or work.macs or work.traffic:
            kind, classifies = type(module).__name__, isinstance(module, nn.Linear)
            shares[name] = LayerCost(name, kind, **own, **asdict(work), is_classifier=classifies)
    totals = {
        key: sum(getattr(layer, key) for layer in shares.values())
        for key in ("params", "macs", "activations", "traffic", "bytes")
    }
    return Cost(**totals, by_layer=shares, uncounted=counts.uncounted)


def _codes(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Return the buffers that hold weights as 8-bit codes: matrices and kernels; scales and zero points are vectors."""
    narrow = (torch.int8, torch.uint8)
    return [(key, t) for key, t in module.named_buffers(recurse=False) if t.dtype in narrow and t.dim() > 1]
