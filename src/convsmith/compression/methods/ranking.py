"""In which order the channels of a group go, and what it costs as more of them do.

The surgeon asks which its readers miss least, and what their other weights then become, from second moments.

A layer reads inputs x of moments S = E[x x^T] with weights B [C, n], one row an input channel. Without channel c, the
others making good for it as well as they can, its output error grows by |B_c|^2 / (S^-1)_cc, and the others become
B - (S^-1)_:c B_c / (S^-1)_cc (Hassibi and Stork 1993, "Second order derivatives for network pruning: Optimal brain
surgeon", eq. 5, with the layer's own squared error in place of the network's). Channels go a few at a time, the least
missed first. The taps of a kernel are taken to see inputs of the same moments.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from convsmith.compression.methods.channels import Group, by_input, hide
from convsmith.compression.planning.moments import chosen_positions, damped, sampled_outputs, summed
from convsmith.compression.planning.prefix import Prefix
from convsmith.compression.planning.reconstruct import WIDEST
from convsmith.inspection.layers import Weighted

#: shares of a group's channels that the scan removes
SCANNED = (0.125, 0.25, 0.5, 0.75)
#: rows of inputs in a layer's moments, at most
ROWS = 16384
#: weight of staying near the present weights, in units of the inputs' mean square
RIDGE = 0.03
#: steps in which the channels of a group go
STEPS = 64


class Ranking(NamedTuple):
    """Channels [size] of a group from least to most important, and what each is worth [size]."""

    order: Tensor
    worth: Tensor


def input_moments(model: nn.Module, images: Tensor, groups: Sequence[Group]) -> dict[str, Tensor]:
    """Return E[x x^T] [C, C] (float64, a little damped) of what enters every reader of ``groups``, by layer name.

    ``images``: [B, C, H, W]. Of a layer with more than `WIDEST` inputs only the diagonal is kept: [C].
    """
    each = -(-ROWS // len(images))

    def measure(module: Weighted, args: Any, _size: int) -> tuple[int, Tensor]:
        x = args[0].detach()
        rows = sampled_outputs(module, x, chosen_positions(module, tuple(x.shape), each, 0)).double()
        return len(rows), rows.square().sum(0) if rows.shape[1] > WIDEST else rows.mT @ rows

    names = {part.name for group in groups for part in group.consumers}
    sums = summed(model, images, names, measure, before=True)
    found = {name: (total / count).cpu() for name, (count, total) in sums.items()}
    return {name: known if known.dim() == 1 else damped(known, RIDGE) for name, known in found.items()}


def least_missed(model: nn.Module, group: Group, moments: Mapping[str, Tensor]) -> Ranking:
    """Return the order in which the channels of ``group`` go, and what each costs, those before it being gone.

    A reader's loss is counted in units of the energy of its outputs, so that all readers weigh the same.
    """
    fixed = torch.zeros(group.size, dtype=torch.float64)
    readers: list[tuple[Tensor, Tensor, Tensor, Tensor, Tensor]] = []
    for part in (part for part in group.consumers if part.name in moments):
        known, weight = moments[part.name], _numbers(model.get_submodule(part.name))
        if known.dim() == 1:
            each = known * weight.square().sum(1)
            fixed.index_add_(0, part.root, each[part.own] / each.sum().clamp_min(1e-300))
        else:
            energy = (weight * (known @ weight)).sum().clamp_min(1e-300)
            readers.append((part.own, part.root, torch.linalg.inv(known), weight, energy))
    order, losses = list[Tensor](), list[Tensor]()
    left = torch.ones(group.size, dtype=torch.bool)
    while bool(left.any()):
        loss = fixed.clone()
        for own, root, inverse, weight, energy in readers:
            each = weight.square().sum(1) / inverse.diagonal().clamp_min(1e-300) / energy
            loss.index_add_(0, root, each[own])
        loss[~left] = torch.inf
        going = loss.argsort(stable=True)[: min(max(1, group.size // STEPS), int(left.sum()))]
        order.append(going)
        losses.append(loss[going])
        left[going] = False
        for own, root, inverse, weight, _ in readers:
            gone = own[torch.isin(root, going)]
            gain = torch.linalg.solve(inverse[gone][:, gone], inverse[gone]).mT
            weight -= gain @ weight[gone]
            inverse -= gain @ inverse[gone]
            # what is gone has no part in later steps
            inverse[gone, gone] = 1.0
    return Ranking(torch.cat(order), torch.cat(losses))


def hide_made_good(
    model: nn.Module, group: Group, channels: Tensor, moments: Mapping[str, Tensor]
) -> list[tuple[Weighted, Tensor]]:
    """Do as `hide`, and give the readers' other weights what makes good for ``channels`` best; return the same."""
    able = [part for part in group.consumers if part.name in moments and moments[part.name].dim() == 2]
    before = [_numbers(model.get_submodule(part.name)) for part in able]
    undo = hide(model, group, channels)
    for part, weight in zip(able, before, strict=True):
        known = moments[part.name]
        gone = torch.zeros(len(weight), dtype=torch.bool)
        gone[part.own[torch.isin(part.root, channels)]] = True
        if bool(gone.all()):
            continue
        gain = torch.cholesky_solve(known[~gone][:, gone] @ weight[gone], torch.linalg.cholesky(known[~gone][:, ~gone]))
        made = torch.zeros_like(weight)
        made[~gone] = weight[~gone] + gain
        rows = by_input(model.get_submodule(part.name))
        with torch.no_grad():
            rows.copy_(made.reshape(rows.shape))
    return undo


def curve(prefix: Prefix, group: Group, ranking: Ranking, moments: dict[str, Tensor] | None) -> list[float]:
    """Return the sensitivity with 0, 1, ... all channels removed, non-decreasing: measured at `SCANNED` shares.

    Between them it follows the worth of what is removed, scaled by what was measured. ``moments``: of the readers,
    whose other weights make good for what is removed, as they will once re-solved.
    """
    counts, found = [0], [0.0]
    prefix.before([prefix.model.get_submodule(part.name) for part in group.consumers])
    for share in SCANNED:
        count = max(1, round(share * group.size))
        if count <= counts[-1] or count >= group.size:
            continue
        undo = hide_made_good(prefix.model, group, ranking.order[:count], moments or {})
        try:
            found.append(max(found[-1], prefix.error()))
        finally:
            for module, weight in reversed(undo):
                module.weight.data.copy_(weight)
        counts.append(count)
    counts.append(group.size)
    found.append(2 * found[-1] if found[-1] > 0 else 1.0)
    numbers = np.arange(group.size + 1)
    # scores may be anything; a small part of the line keeps the worth above zero
    worth = np.append(0.0, ranking.worth.clamp_min(0).cumsum(0).numpy())
    worth = worth / max(worth[-1], 1e-300) + 1e-3 * numbers / group.size
    scale = np.interp(numbers, counts[1:], np.array(found[1:]) / worth[counts[1:]])
    harms: list[float] = np.maximum.accumulate(scale * worth).tolist()
    return harms


def _numbers(module: Weighted) -> Tensor:
    """Return a copy of the weights [C, n] in float64, one row an input channel."""
    return by_input(module).detach().double().cpu().flatten(1).clone()
