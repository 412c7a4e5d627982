"""Which layers are added to a map that is there before they run, and can make good what that map lost.

The sum of a residual block is wanted, not its two parts: where ``q`` has become ``q'``, the layer whose output ``y``
reaches the sum as ``scale * y`` is wanted to give ``y + (q - q') / scale`` (He et al. 2017, "Channel pruning", section
3.3, where the last layer of a residual branch is solved for ``Y1 - Y1' + Y2``).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.compression.planning.agreement import HARMLESS
from convsmith.inspection.layers import Call, LayerInventory
from convsmith.inspection.modes import watching

#: scales below this share of the largest are no way to the sum
LEAST = 1e-2


@dataclass(frozen=True)
class Shortcut:
    """``other``: name of the module whose output a layer is added to; ``scale`` [C] on the layer's way to the sum."""

    other: str
    scale: Tensor

    def lost(self, before: Tensor, now: Tensor, kept: Tensor | slice) -> Tensor:
        """Return what a layer's outputs [n, C'] should make good of the other map's; ``kept``: which of C are left."""
        scale = self.scale[kept]
        there = scale.abs() > LEAST * self.scale.abs().max()
        return torch.where(there, (before - now) / torch.where(there, scale, 1.0), 0.0)


def shortcuts(
    original: nn.Module, inventory: LayerInventory, names: Collection[str], images: Tensor
) -> dict[str, Shortcut]:
    """Return the shortcut of every layer among ``names`` that has one, by name.

    Tried out: noise on the layer's outputs must move what is added by the noise times a number per channel.
    """
    calls = {call.name: call for call in inventory.calls if call.name in names}
    found: dict[str, Shortcut] = {}
    for pair in inventory.sums:
        for added, other in (pair, pair[::-1]):
            before = [call for call in calls.values() if call.order <= added.order and call.shape == added.shape]
            last = max(before, key=lambda call: call.order, default=None)
            if last is None or last.name in found or other.order > last.order or other.shape != last.shape:
                continue
            scale = _scale(original, last, added, images)
            if scale is not None:
                found[last.name] = Shortcut(other.name, scale)
    return found


def _scale(original: nn.Module, layer: Call, added: Call, images: Tensor) -> Tensor | None:
    """Return what a layer's output is multiplied by [C] on its way to ``added``, None where that is not all."""
    seen: list[Tensor] = []
    noise: list[Tensor] = []

    def moved(_module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        noise.append(torch.randn(output.shape, generator=torch.Generator().manual_seed(0)) * output.std())
        return output + noise[0].to(output)

    def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
        seen.append(output.clone())

    with watching(original, {added.name: keep}):
        original(images)
    with watching(original, {layer.name: moved}), watching(original, {added.name: keep}):
        original(images)
    channels = noise[0].dim() - 1 if isinstance(layer.module, nn.Linear) else 1
    step, change = (x.movedim(channels, -1).flatten(0, -2) for x in (noise[0].to(seen[0]), seen[1] - seen[0]))
    scale = (change * step).sum(0) / step.square().sum(0)
    off = (change - scale * step).square().sum()
    return scale if bool(off <= HARMLESS * change.square().sum()) and bool(scale.any()) else None
