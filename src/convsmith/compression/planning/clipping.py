"""Which outputs of a layer an activation cuts off, and what is left to ask of them.

Behind a ReLU all values below zero are one, so of an output that is cut off only that is asked, not its value: its
error is how much it is short of that (Zhang et al. 2015, section 3.2, ask the same by a penalty that grows). Wanting in
its place what the present weights give, or the bound where they are short of it, makes an upper bound of this error
that touches it at the present weights: solving again never makes it worse.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.compression.folded import scale_and_shift
from convsmith.compression.methods.method import output_error
from convsmith.compression.planning.agreement import HARMLESS
from convsmith.inspection.layers import Weighted
from convsmith.inspection.modes import watching
from convsmith.inspection.outputs import joined_output

#: what activations of networks cut off, in the order they are tried: ReLU6, ReLU
RANGES = ((0.0, 6.0), (0.0, math.inf))
#: values at which a range is tried out, in its units
REACH = 12.0

Bounds = tuple[Tensor, Tensor]


def clipped(original: nn.Module, names: Iterable[str], norms: Mapping[str, str], images: Tensor) -> dict[str, Bounds]:
    """Return least and largest output [C] of every layer that matters, by name, where an activation cuts them off.

    ``norms``: the batch normalisation behind a layer, by name. Tried out: with noise for outputs the network must
    answer the same whether the noise is cut off or not.
    """
    found: dict[str, Bounds] = {}
    for name in names:
        layer, norm = original.get_submodule(name), original.get_submodule(norms[name]) if name in norms else None
        scale = _scale(layer, norm)
        loud = _answers(original, name, images, scale, None)
        for least, most in RANGES:
            bounds = _bounds(scale, least, most)
            if output_error(loud, _answers(original, name, images, scale, bounds)) < HARMLESS:
                found[name] = bounds
                break
    return found


def asked(wanted: Tensor, given: Tensor, bounds: Bounds) -> Tensor:
    """Return what to solve for [n, C] where ``given`` are the present outputs: see above."""
    low, high = bounds
    below, above = torch.minimum(given, low), torch.maximum(given, high)
    return torch.where(wanted <= low, below, torch.where(wanted >= high, above, wanted))


def _scale(layer: Weighted, norm: Any) -> tuple[Tensor, Tensor]:
    """Return (factor, term) [C] from a layer's outputs to what is cut off."""
    if norm is None:
        weight = layer.weight.detach().flatten(1)[:, 0]
        return torch.ones_like(weight), torch.zeros_like(weight)
    factor, term = scale_and_shift(norm)
    return factor.detach(), term.detach()


def _bounds(scale: tuple[Tensor, Tensor], least: float, most: float) -> Bounds:
    factor, term = scale
    ends = [torch.where(factor == 0, sign * math.inf, (end - term) / factor) for sign, end in ((-1, least), (1, most))]
    return torch.minimum(*ends), torch.maximum(*ends)


def _answers(
    original: nn.Module, name: str, images: Tensor, scale: tuple[Tensor, Tensor], bounds: Bounds | None
) -> Tensor:
    """Return the network's answers with noise for a layer's outputs, cut off at ``bounds``."""

    def loud(module: nn.Module, _args: Any, output: Tensor) -> Tensor:
        shape = [1] * output.dim()
        shape[-1 if isinstance(module, nn.Linear) else 1] = -1
        factor, term = (x.view(shape) for x in scale)
        noise = torch.rand(output.shape, generator=torch.Generator().manual_seed(0)).to(output) * 2 - 1
        made = torch.where(factor == 0, output, (REACH * noise - term) / factor)
        return made if bounds is None else made.clamp(*(end.view(shape) for end in bounds))

    with watching(original, {name: loud}):
        return joined_output(original(images))
