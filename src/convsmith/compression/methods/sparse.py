"""The methods ``sparse`` and ``structured-sparse``: small weights become zeros, with no mask left behind.

Patterns, all by magnitude:
``free``   any weight; a share of each layer's weights becomes zero (Han et al. 2015);
``n:m``    of every m consecutive input channels, per output and tap, n keep their weight (Mishra et al. 2021 for 2:4;
           in a transposed convolution of its output channels, per input and tap);
``block``  tiles of out x in channels (in x out of a transposed one), all taps at once, ranked by their norm.

A zero saves storage (`convsmith.compression.packed_state`). It saves time only on kernels that skip it, and torch's
dense convolutions do not: the note on every result says so.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convsmith.arguments import integer, number
from convsmith.compression.methods.method import METHODS, Applied, Method
from convsmith.compression.planning.budget import Option, assemble, plan_layers
from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.subject import Subject
from convsmith.errors import InvalidArgument
from convsmith.inspection.layers import Layer

#: sparsities offered to the budget
LEVELS = tuple(round(0.02 * i, 2) for i in range(1, 50))
_NOTE = "zeros shrink the file; torch's dense kernels multiply them all the same, so latency does not fall"


def mask(weight: Tensor, setting: dict[str, Any]) -> Tensor:
    """Return which weights stay [like weight, bool] for one setting of a plan.

    ``{"sparsity": s}``; ``{"n": n, "m": m}``; ``{"block": [o, i], "sparsity": s}``. Exactly the asked number stays,
    ties by position (for blocks, up to tiles cut by the edge).
    """
    size = weight.detach().abs()
    if "m" in setting:
        n, m = setting["n"], setting["m"]
        if not 0 <= n <= m or size.shape[1] % m:
            rule = f"n of m weights stay, and m divides the {size.shape[1]} channels per group that they run along"
            raise InvalidArgument(rule, argument="n:m", given=f"{n}:{m}")
        grouped = size.movedim(1, -1)  # [out, taps..., in]
        rows = grouped.reshape(-1, m)
        keep = torch.zeros_like(rows, dtype=torch.bool)
        keep.scatter_(1, rows.argsort(dim=1, descending=True, stable=True)[:, :n], True)
        return keep.reshape(grouped.shape).movedim(-1, 1)
    if "block" in setting:
        high, wide = setting["block"]
        flat = size.reshape(*size.shape[:2], -1).double().square().sum(-1)
        padded = nn.functional.pad(flat, (0, -flat.shape[1] % wide, 0, -flat.shape[0] % high))
        tiles = padded.reshape(padded.shape[0] // high, high, padded.shape[1] // wide, wide).sum((1, 3))
        keep = _largest(tiles, setting["sparsity"]).repeat_interleave(high, 0).repeat_interleave(wide, 1)
        keep = keep[: weight.shape[0], : weight.shape[1]]
        return keep.reshape(*keep.shape, *[1] * (weight.dim() - 2)).expand_as(weight)
    return _largest(size, setting["sparsity"])


def _largest(size: Tensor, sparsity: float) -> Tensor:
    number("sparsity", sparsity, least=0, most=1)
    flat = size.reshape(-1)
    count = flat.numel() - round(sparsity * flat.numel())
    keep = torch.zeros_like(flat, dtype=torch.bool)
    keep[flat.argsort(descending=True, stable=True)[:count]] = True
    return keep.reshape(size.shape)


@dataclass(frozen=True)
class _Sparsity(Method):
    """What both methods share: options are densities, the layer class does not change."""

    budgets: ClassVar[frozenset[str]] = frozenset({"macs", "params"})
    keeps_zeros: ClassVar[bool] = True
    label: ClassVar[str] = ""

    @abstractmethod
    def settings_for(self, layer: Layer) -> list[dict[str, Any]] | str:
        """Return the settings to choose from, sparsest last, or the reason why there is none."""

    @abstractmethod
    def fixed(self) -> bool:
        """Return whether the user fixed the setting, so that no budget is needed."""

    def plan(self, subject: Subject, budget: Budget | None) -> Plan:
        """Choose a density per layer; MACs and parameters in the plan count non-zero weights only."""
        table, skipped = self.table(subject, self._options)
        if budget is None and self.fixed():
            picked = [(layer, options[0], None) for layer, options in table]
            return assemble(self.label, subject, picked, skipped=skipped)
        return plan_layers(self.label, subject, table, _thinned, budget or Budget("macs", 0.5), skipped=skipped)

    def _options(self, layer: Layer) -> list[Option] | str:
        """Count the non-zero weights and the lost energy of every setting; free patterns from one sort."""
        settings = self.settings_for(layer)
        if isinstance(settings, str):
            return settings
        weight = layer.module.weight.detach()
        energy = weight.double().square()
        total = float(energy.sum()) or 1.0
        ranked = energy.reshape(-1).sort().values.cumsum(0) if settings[0].keys() == {"sparsity"} else None
        zeros = weight.numel() - int(torch.count_nonzero(weight))
        found = []
        for setting in settings:
            if ranked is not None:
                gone = round(setting["sparsity"] * weight.numel())
                used = weight.numel() - max(gone, zeros)
                loss = float(ranked[gone - 1]) / total if gone else 0.0
            else:
                keep = mask(weight, setting)
                used = int(torch.count_nonzero(weight * keep))
                loss = float(energy[~keep].sum()) / total
            macs = round(layer.macs / weight.numel() * used)
            found.append(Option(setting, macs, layer.params - weight.numel() + used, loss))
        return found

    def apply(self, subject: Subject, plan: Plan) -> Applied:
        """Zero the weights of the planned layers."""
        layers = plan.settings()
        for name, setting in layers.items():
            weight = subject.seen.by_name()[name].module.weight
            with torch.no_grad():
                weight.mul_(mask(weight, setting))
        return Applied(subject.model, layers, (_NOTE,))

    @classmethod
    def restore_structure(cls, model: nn.Module, layers: dict[str, Any]) -> nn.Module:
        """Return the model as it is: zeros are weights (the named layers must exist)."""
        for name in layers:
            model.get_submodule(name)
        return model


@METHODS.register("sparse")
@dataclass(frozen=True)
class Sparse(_Sparsity):
    """Zero the smallest weights, anywhere in a layer.

    Args:
        sparsity: the share of zeros in every layer, in [0, 1); without it a budget decides per layer (half by default).
    """

    sparsity: float | None = None

    label: ClassVar[str] = "sparse"

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            number("sparsity", self.sparsity, least=0, below=1)

    def settings_for(self, layer: Layer) -> list[dict[str, Any]] | str:
        """Return one setting per sparsity."""
        return [{"sparsity": s} for s in (LEVELS if self.sparsity is None else (self.sparsity,))]

    def fixed(self) -> bool:
        """Return whether a sparsity was given."""
        return self.sparsity is not None


@METHODS.register("structured-sparse")
@dataclass(frozen=True)
class StructuredSparse(_Sparsity):
    """Zero weights in a regular pattern: n of every m input channels, or whole blocks.

    Args:
        pattern: ``"n:m"`` such as ``"2:4"`` (the default without a budget), or ``"block"``. A budget with ``"n:m"``
            keeps m and chooses n per layer.
        block: (output, input) channels of a tile, for ``"block"``.
        sparsity: the share of zero tiles, for ``"block"``.
    """

    pattern: str = "2:4"
    block: tuple[int, int] = (4, 4)
    sparsity: float | None = None

    label: ClassVar[str] = "structured-sparse"

    def __post_init__(self) -> None:
        if self.sparsity is not None:
            number("sparsity", self.sparsity, least=0, below=1)
        if self.pattern != "block":
            n, m = _pattern(self.pattern)
            if not 1 <= n <= m or m < 2:
                raise InvalidArgument(
                    "a pattern n:m has 1 <= n <= m and m at least 2", argument="pattern", given=self.pattern
                )
            if self.sparsity is not None:
                raise InvalidArgument("the pattern n:m fixes the sparsity", argument="sparsity", given=self.sparsity)
        for side in self.block:
            integer("block", side, least=1)

    def settings_for(self, layer: Layer) -> list[dict[str, Any]] | str:
        """Return the n of n:m with the asked one first, or one setting per block sparsity; or why neither fits."""
        weight = layer.module.weight
        if self.pattern == "block":
            high, wide = self.block
            if weight.shape[0] < 2 * high and weight.shape[1] < 2 * wide:
                return f"it holds a single block of {high} x {wide} channels"
            levels = LEVELS if self.sparsity is None else (self.sparsity,)
            return [{"block": [high, wide], "sparsity": s} for s in levels]
        n, m = _pattern(self.pattern)
        if weight.shape[1] % m:
            side = "output" if layer.kind == "transposed" else "input"
            return f"its {weight.shape[1]} {side} channels per group are not a multiple of {m}"
        return [{"n": n, "m": m}, *({"n": k, "m": m} for k in range(m - 1, 0, -1) if k != n)]

    def fixed(self) -> bool:
        """Return whether the setting is known without a budget."""
        return self.pattern != "block" or self.sparsity is not None


def _pattern(text: str) -> tuple[int, int]:
    parts = str(text).split(":")
    if len(parts) != 2 or not all(p.isdigit() for p in parts):
        raise InvalidArgument("a pattern is 'n:m' or 'block'", argument="pattern", given=text, hint="'2:4', for one")
    return int(parts[0]), int(parts[1])


def _thinned(layer: Layer, option: Option) -> nn.Module:
    new = copy.deepcopy(layer.module)
    with torch.no_grad():
        new.weight.mul_(mask(new.weight, option.setting))
    return new
