"""Re-solve a compressed network's weights layer by layer on unlabelled images, so that it answers as the original.

One pass through the original keeps samples of every layer's outputs. One pass through the compressed network then
stops at every layer: its inputs are what the layers before it, already re-solved, make of the images; its weights
become those that come nearest to the original's outputs (`moments`); the pass goes on with what it now computes. No
labels, no steps, no learning rate. A layer class of a method (a low-rank chain, an interleaved one) knows how to take
over the best dense weights in the metric of its inputs: its ``refit``.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.compression.methods.method import output_error
from convsmith.compression.planning.agreement import HARMLESS
from convsmith.compression.planning.clipping import Bounds, asked, clipped
from convsmith.compression.planning.moments import (
    Moments,
    by_group,
    chosen_positions,
    chosen_ridge,
    enough,
    sampled_inputs,
    sampled_outputs,
    samples,
)
from convsmith.compression.planning.replacement import StandIn
from convsmith.compression.planning.shortcuts import Shortcut, shortcuts
from convsmith.compression.planning.subject import Progress
from convsmith.inspection.layers import LayerInventory, Weighted
from convsmith.inspection.modes import BATCH_NORMS, copied, evaluating, watching
from convsmith.inspection.outputs import joined_output

#: images used at most: activations of all of them are in memory at once
IMAGES = 256
#: fewest images with which `compress` reconstructs unless told to
FEWEST = 64
#: inputs of a group above which a layer only gets a gain and a bias per output: the moments grow with the square
WIDEST = 2304
#: times a layer is solved whose outputs an activation cuts off
ROUNDS = 4
#: images of one batch through the original
BATCH = 32


def reconstruct(
    original: nn.Module,
    compressed: nn.Module,
    inventory: LayerInventory,
    images: Tensor,
    *,
    rows: Mapping[str, Tensor] | None = None,
    progress: Progress | None = None,
) -> dict[str, float]:
    """Re-solve the weights of ``compressed``, in place, and return the relative squared error left by layer.

    Args:
        original: the network before the compression; not changed.
        compressed: what a method made of it, with its layers under the same names.
        inventory: `trace_layers` of the original.
        images: [B, C, H, W], unlabelled, at most `IMAGES` are used.
        rows: which output channels of a layer are left, by name, where some were removed.
        progress: called with (done, total, note).

    Layers before the first change, layers that run several times and parameters that are frozen stay as they are. The
    mean that a layer without bias lacks goes into the batch normalisation that alone reads it.
    """
    images, rows, there = images[:IMAGES], rows or {}, dict(compressed.named_modules())
    able = [x.name for x in inventory.layers if x.problem is None and x.kind in ("conv", "linear") and x.calls == 1]
    names = [name for name in able if name in there]
    found = _norms(original, inventory, images[:2]) if len(images) > 1 else {}
    beside = {k: v for k, v in shortcuts(original, inventory, names, images[:2]).items() if v.other in there}
    targets, others = _targets(original, names, images, beside)
    now: dict[str, Tensor] = {}
    cut = clipped(original, names, found, images[:1])
    norms: dict[str, Any] = {name: there[norm] for name, norm in found.items()}
    errors: dict[str, float] = {}
    changed = False

    def hook(seed: int, name: str) -> Callable[..., Tensor | None]:
        """Return the forward hook of one layer; what it returns takes the place of the layer's output."""

        def solve(module: nn.Module, args: Any, output: Tensor) -> Tensor | None:
            nonlocal changed
            if progress is not None:
                progress(seed, len(names), f"reconstruct {name}")
            before: Weighted = original.get_submodule(name)
            changed = changed or type(module) is not type(before) or not _same(module, before)
            if not changed or not all(p.requires_grad for p in module.parameters()):
                return None
            wanted, norm = targets[name], norms.get(name)
            if norm is not None and not all(p.requires_grad for p in norm.parameters()):
                norm = None
            kept = rows.get(name, slice(None))
            wanted = wanted[:, kept]
            if name in now and now[name].shape == wanted.shape:
                wanted = wanted + beside[name].lost(others[name][:, kept], now[name], kept)
            bounds = (cut[name][0][kept], cut[name][1][kept]) if name in cut else None
            goal, given, result = _solve(
                module, before, args[0], output, wanted, seed, bounds, centred=norm is not None
            )
            lost = (goal - given).mean(0)
            if norm is not None:
                norm.running_mean.sub_(lost)
                given = given + lost
            elif before.bias is not None and isinstance(module, StandIn):
                module.shift(lost)
                given, result = given + lost, module.forward(args[0])
            spread = float((wanted - wanted.mean(0)).square().sum())
            errors[name] = float((given - goal).square().sum()) / max(spread, 1e-30)
            return result

        return solve

    def look(joined: Iterable[str]) -> Callable[..., None]:
        """Return the hook of a module whose output these layers are added to."""

        def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
            for name in joined:
                now[name] = _sampled(original.get_submodule(name), output, len(output), names.index(name))

        return keep

    solving = {name: hook(seed, name) for seed, name in enumerate(names)}
    # behind the solving: it may be a layer that is solved itself
    with watching(compressed, solving), watching(compressed, {k: look(v) for k, v in _joined(beside).items()}):
        compressed(images)
    return errors


def _solve(
    module: Any,
    before: Weighted,
    x: Tensor,
    output: Tensor,
    wanted: Tensor,
    seed: int,
    bounds: Bounds | None,
    *,
    centred: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Give ``module`` new weights; return what was asked of its outputs in the end, what they are, [n, C'], and all.

    ``output`` of ``x`` is what it gives with its present weights, ``wanted`` [n, C'] what its samples should be but for
    what ``bounds`` cut off. ``centred``: the mean that its outputs lack is made good behind it.
    """
    refits, biased = isinstance(module, StandIn), before.bias is not None
    layer = before if refits else module
    base = by_group(layer)
    groups, outputs, width = base.shape
    positions = chosen_positions(before, tuple(output.shape), -(-samples(before) // len(output)), seed)
    if width > WIDEST or not enough(len(wanted), width):
        _gain(module, wanted, sampled_outputs(before, output, positions))
        result: Tensor = module.forward(x)
        return wanted, sampled_outputs(before, result, positions), result
    inputs = sampled_inputs(layer, x, positions, output.shape[-1])
    goal, ridge = wanted, None
    for _ in range(1 if bounds is None else ROUNDS):
        targets = goal.reshape(-1, groups, outputs)
        moments = Moments.of(inputs, targets, centred=biased or centred)
        ridge = ridge or chosen_ridge(inputs, targets, base, centred=moments.centred)
        best = moments.best(base, ridge)
        bias = moments.bias(best) if biased else None
        if refits:
            module.refit(best, moments, bias)
        else:
            module.weight.copy_(best.reshape(module.weight.shape))
            if bias is not None:
                module.bias.copy_(bias)
        result = module.forward(x)
        given = sampled_outputs(before, result, positions)
        if bounds is not None:
            lost = (goal - given).mean(0) if centred or (biased and refits) else 0.0
            goal = asked(wanted, given + lost, bounds)
    return goal, given, result


def _norms(original: nn.Module, inventory: LayerInventory, images: Tensor) -> dict[str, str]:
    """Return the batch normalisation behind each layer without bias whose output nothing else reads, by layer name.

    Tried out: moving the layer's outputs and the running means by the same must not move the network's answers.
    """
    calls = [c for c in inventory.calls if isinstance(c.module, BATCH_NORMS) and inventory.count(c.module) == 1]
    pairs = {
        c.source.name: c.name
        for c in calls
        if c.source is not None and c.module.running_mean is not None and inventory.count(c.source.module) == 1
    }
    pairs = {a: b for a, b in pairs.items() if getattr(original.get_submodule(a), "bias", 0) is None}

    def output(some: Mapping[str, str]) -> Tensor:
        model = copied(original)
        for name, norm in some.items():
            mean: Any = model.get_submodule(norm).running_mean
            step = mean.abs().mean() + 1
            mean.add_(step)
            model.get_submodule(name).register_forward_hook(lambda _m, _a, out, step=step: out + step)
        with evaluating(model), torch.no_grad():
            return joined_output(model(images))

    wanted = output({})
    if output_error(wanted, output(pairs)) < HARMLESS:
        return pairs
    return {a: b for a, b in pairs.items() if output_error(wanted, output({a: b})) < HARMLESS}


def _gain(module: Any, wanted: Tensor, given: Tensor) -> None:
    """Scale every output (and shift it if there is a bias) to the least squares fit of what is wanted."""
    last: Any = module[-1] if isinstance(module, nn.Sequential) else module
    weight: Any = None if isinstance(last, StandIn) else getattr(last, "weight", None)
    # the last layer of an interpolative chain may give a part of the outputs
    if not isinstance(weight, Tensor) or len(weight) != wanted.shape[1]:
        return
    biased = last.bias is not None
    x, y = given.double(), wanted.double()
    mean_x, mean_y = (x.mean(0), y.mean(0)) if biased else (x.new_zeros(()), y.new_zeros(()))
    x, y = x - mean_x, y - mean_y
    square = x.square().mean(0)
    ridge = 0.1 * square.mean().clamp_min(1e-12)
    gain = ((x * y).mean(0) + ridge) / (square + ridge)
    weight.mul_(gain.view(-1, *[1] * (weight.dim() - 1)))
    if biased:
        last.bias.copy_(last.bias * gain + mean_y - gain * mean_x)


def _targets(
    original: nn.Module, names: list[str], images: Tensor, beside: Mapping[str, Shortcut]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return samples of every layer's outputs in the original, and of what they are added to, [n, C'] by name."""
    found: dict[str, list[Tensor]] = {}
    others: dict[str, list[Tensor]] = {}
    size = 0

    def hook(known: dict[str, list[Tensor]], read: Iterable[str]) -> Callable[..., None]:
        def keep(_module: nn.Module, _args: Any, output: Tensor) -> None:
            for name in read:
                # a layer may run on windows of images: as many rows an image in both passes
                rows = len(output) // size * len(images)
                part = _sampled(original.get_submodule(name), output, rows, names.index(name))
                known.setdefault(name, []).append(part.clone())

        return keep

    theirs = {module: hook(others, read) for module, read in _joined(beside).items()}
    with watching(original, {name: hook(found, [name]) for name in names}), watching(original, theirs):
        for batch in images.split(BATCH):
            size = len(batch)
            original(batch)
    return tuple({name: torch.cat(parts) for name, parts in known.items()} for known in (found, others))  # type: ignore[return-value]


def _joined(beside: Mapping[str, Shortcut]) -> dict[str, list[str]]:
    """Return, by module, the layers that are added to its output."""
    found: dict[str, list[str]] = {}
    for name, shortcut in beside.items():
        found.setdefault(shortcut.other, []).append(name)
    return found


def _sampled(layer: Weighted, output: Tensor, rows: int, seed: int) -> Tensor:
    """Return the samples of an output of the shape of ``layer``'s, at the positions where the layer is looked at."""
    positions = chosen_positions(layer, tuple(output.shape), -(-samples(layer) // rows), seed)
    return sampled_outputs(layer, output, positions)


def _same(module: nn.Module, before: nn.Module) -> bool:
    """Return whether two modules hold the same numbers."""
    pairs = itertools.zip_longest(module.parameters(), before.parameters())
    return all(a is not None and b is not None and a.shape == b.shape and torch.equal(a, b) for a, b in pairs)
