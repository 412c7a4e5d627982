"""Which channels hang together: groups of layers that lose a channel together, what they cost, how much each matters.

A group is what torch-pruning's dependency graph returns: removing channel i of its root removes rows of the layers
that produce it, entries of the normalisations, columns of the layers that consume it. Here a group also knows how to
be masked (the consumers' columns set to zero), which computes exactly what removal must compute.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.compression.operators.interleaved import LinearChain
from convsmith.compression.planning.subject import Subject
from convsmith.errors import InvalidArgument, refusing, require
from convsmith.inspection.layers import KINDS, Layer, LayerInventory, Weighted
from convsmith.inspection.modes import evaluating, watching

_UNTRACED = "torch-pruning could not trace this network"
_ACROSS = (nn.LayerNorm, nn.GroupNorm, nn.LocalResponseNorm)


@dataclass(frozen=True)
class Part:
    """One layer's share in a group: its channels ``own`` [n] belong to the root's channels ``root`` [n]."""

    name: str
    own: Tensor = field(repr=False)
    root: Tensor = field(repr=False)


@dataclass(frozen=True)
class Group:
    """``size`` channels of ``root`` and everything that carries them: producers' rows, consumers' columns, the rest.

    ``traced``: the part of the network whose graph told ("": the whole).
    """

    root: str
    size: int
    producers: tuple[Part, ...]
    consumers: tuple[Part, ...]
    others: tuple[Part, ...]
    traced: str = ""


def dependency_graph(model: nn.Module, given: Tensor) -> Any:
    """Return torch-pruning's dependency graph of ``model`` (traced in evaluation mode with gradients on)."""
    pruning = require("torch_pruning", "compress")
    frozen = [p for p in model.parameters() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        with evaluating(model), torch.enable_grad(), refusing(_UNTRACED, Exception):
            return pruning.DependencyGraph().build_dependency(model, given[:2], verbose=False)
    finally:
        for p in frozen:
            p.requires_grad_(False)


def inputs_of_parts(model: nn.Module, example: Tensor) -> dict[str, Tensor]:
    """Return what goes into every inner module that runs once, on one tensor."""
    calls: dict[str, list[Any]] = {}
    hooks = {n: lambda _, args, n=n: calls.setdefault(n, []).append(args) for n, _ in model.named_modules() if n}
    with watching(model, hooks, before=True):
        model(example[:2])
    once = {n: args[0] for n, args in calls.items() if len(args) == 1}
    return {n: args[0] for n, args in once.items() if len(args) == 1 and isinstance(args[0], Tensor)}


def _raw_groups(model: nn.Module, example: Tensor) -> dict[str, tuple[Any, list[Any]]]:
    """Return torch-pruning's graph and groups of the network under "".

    Where it cannot follow the whole (a shuffle of channels, several outputs): those of the largest parts it can, by
    name. What enters and leaves a part must keep its channels, which its graph does not say: their groups need a trial.

    Raises:
        InvalidArgument: not even a part can be followed.
    """

    def follow(module: nn.Module, given: Tensor) -> tuple[Any, list[Any]]:
        graph = dependency_graph(module, given)
        with refusing(_UNTRACED, Exception):
            return graph, list(graph.get_all_groups(root_module_types=tuple(KINDS)))

    def follow_parts(module: nn.Module, prefix: str) -> None:
        for key, child in module.named_children():
            name = f"{prefix}{key}"
            if name in inputs and sum(isinstance(m, tuple(KINDS)) for m in child.modules()) > 1:
                with contextlib.suppress(InvalidArgument):
                    found[name] = follow(child, inputs[name])
                    continue
            follow_parts(child, f"{name}.")

    try:
        return {"": follow(model, example)}
    except InvalidArgument:
        inputs, found = inputs_of_parts(model, example), dict[str, tuple[Any, list[Any]]]()
        follow_parts(model, "")
        if not found:
            raise
        return found


def find_groups(model: nn.Module, seen: LayerInventory, skip: Sequence[str] = ()) -> tuple[list[Group], dict[str, str]]:
    """Return the groups that can lose channels, and the reason by root name for those that cannot."""
    chains = [name for name, module in model.named_modules() if isinstance(module, LinearChain)]
    if chains:
        raise InvalidArgument(
            "channels cannot be followed through interleaved chains, which reorder them",
            argument="pruning",
            given=", ".join(chains[:4]),
            hint="prune first, then interleave",
        )
    raw_groups = _raw_groups(model, seen.example)
    names = {module: name for name, module in model.named_modules()}
    layers = seen.by_name()
    groups, skipped = [], dict(seen.skipped())
    if "" not in raw_groups:
        apart = [name for name in layers if not any(name.startswith(f"{part}.") for part in raw_groups)]
        skipped |= dict.fromkeys(apart, "torch-pruning cannot follow the channels between its parts")
    for traced, graph, raw in ((part, graph, raw) for part, (graph, raws) in raw_groups.items() for raw in raws):
        root = names[raw[0].dep.target.module]
        reason = _reason(graph, raw, names, layers, skip)
        if reason is not None:
            skipped.setdefault(root, reason)
            for item in raw:
                name = names.get(item.dep.target.module)
                if name in layers and graph.is_out_channel_pruning_fn(item.dep.handler):
                    skipped.setdefault(name, f"its channels go with those of {root}: {reason}")
            continue
        sides: dict[str, list[Part]] = {"out": [], "in": [], "other": []}
        for item in raw:
            module = item.dep.target.module
            if module not in names:
                continue
            part = Part(names[module], torch.tensor(item.idxs), torch.tensor(item.root_idxs))
            weighted = names[module] in layers
            depthwise = weighted and layers[names[module]].is_depthwise
            into = graph.is_in_channel_pruning_fn(item.dep.handler) and not depthwise
            sides["other" if not weighted else "in" if into else "out"].append(part)
        size = len(raw[0].idxs)
        if not sides["in"]:
            skipped.setdefault(root, "no later layer reads its channels")
            continue
        groups.append(Group(root, size, tuple(sides["out"]), tuple(sides["in"]), tuple(sides["other"]), traced))
    return groups, skipped


def _reason(
    graph: Any, raw: Any, names: Mapping[nn.Module, str], layers: Mapping[str, Layer], skip: Sequence[str]
) -> str | None:
    for item in raw:
        target = item.dep.target
        module = target.module
        if target.type == graph.ops.OPTYPE.OUTPUT:
            return "its channels are the output of the network, or of what torch-pruning can follow of it"
        if isinstance(module, nn.Parameter):
            return "its channels meet a bare parameter"
        if module not in names:
            continue
        name = names[module]
        if name in skip:
            return "skipped on request" if name == names[raw[0].dep.target.module] else f"coupled to {name}, skipped"
        layer = layers.get(name)
        if layer is not None:
            if layer.problem is not None:
                return f"coupled to {name}: {layer.problem}"
            if layer.calls > 1:
                return f"coupled to {name}, which runs {layer.calls} times"
            groups = getattr(module, "groups", 1)
            if groups > 1 and not (groups == module.in_channels == module.out_channels):
                return f"coupled to {name}, a convolution in {groups} groups whose channels must go in equal numbers"
            into = graph.is_in_channel_pruning_fn(item.dep.handler) and not layer.is_depthwise
            width = layer.channels(into=into)
            if max(item.idxs) >= width or not (into or len(item.idxs) == width):
                return f"coupled to {name}, whose {width} channels are padded, split or reshaped on the way"
        elif isinstance(module, _ACROSS):
            return f"coupled to {name}, which normalises across channels: removal would change the others"
        if any(r is None for r in item.root_idxs):
            return f"the channels of {name} could not be matched"
    return None


def scores(
    model: nn.Module,
    group: Group,
    *,
    side: str,
    criterion: str,
    importance: Mapping[str, Tensor] | None = None,
) -> Tensor | str:
    """Return one score per channel of the group [size], or why there is none.

    ``side``: ``"filters"`` sums |w| over the rows that produce a channel, ``"channels"`` over the columns that read
    it. ``criterion`` ``"bn-scale"`` sums |gamma| instead. ``importance`` replaces both: scores by layer name, one per
    output channel, summed over the group's producers that have them.
    """
    none = "the importance has no scores for it"
    if importance is not None:
        found = [(p, torch.as_tensor(importance[p.name]).reshape(-1)) for p in group.producers if p.name in importance]
    elif criterion == "bn-scale":
        none = "no batch normalisation scales its channels"
        norms: list[tuple[Part, Weighted]] = [(p, model.get_submodule(p.name)) for p in group.others]
        norms = [(p, norm) for p, norm in norms if hasattr(norm, "running_mean")]
        found = [(p, norm.weight.abs()) for p, norm in norms if norm.weight is not None]
    else:
        rows = side == "filters"
        found = []
        for p in group.producers if rows else group.consumers:
            weight = by_input(model.get_submodule(p.name)).detach().double().cpu().abs()
            found.append((p, (weight.transpose(0, 1) if rows else weight).flatten(1).sum(1)))
    if not found:
        return none
    total = torch.zeros(group.size, dtype=torch.float64)
    for part, values in found:
        total.index_add_(0, part.root, values.detach().double().cpu()[part.own])
    return total


def by_input(module: Weighted) -> Tensor:
    """Return a view of a layer's weights [C, C', ...], one row an input channel."""
    return module.weight if isinstance(module, nn.ConvTranspose2d) else module.weight.transpose(0, 1)


def hide(model: nn.Module, group: Group, channels: Tensor) -> list[tuple[Weighted, Tensor]]:
    """Zero what the consumers read from ``channels`` of the group, in place; return (layer, old weight) to undo it."""
    undo = []
    for part in group.consumers:
        module: Weighted = model.get_submodule(part.name)
        undo.append((module, module.weight.detach().clone()))
        with torch.no_grad():
            by_input(module)[part.own[torch.isin(part.root, channels)].to(module.weight.device)] = 0
    return undo


class Ledger:
    """What the network costs when every group keeps some of its channels."""

    def __init__(self, subject: Subject, groups: Sequence[Group]) -> None:
        self.layers = subject.seen.by_name()
        self.before = {"macs": subject.cost.macs, "params": subject.cost.params}
        self.rows: dict[str, dict[str, int]] = {}
        self.columns: dict[str, dict[str, int]] = {}
        self.norms: dict[str, int] = {}
        modules: dict[str, Weighted] = dict(subject.model.named_modules())
        for group in groups:
            for part in group.producers:
                self.rows.setdefault(part.name, {})[group.root] = max(1, len(part.own) // group.size)
            for part in group.consumers:
                self.columns.setdefault(part.name, {})[group.root] = max(1, len(part.own) // group.size)
            for part in group.others:
                affine = sum(p.numel() for p in modules[part.name].parameters(recurse=False))
                width = getattr(modules[part.name], "num_features", 0)
                if affine and width:
                    per = affine // width * max(1, len(part.own) // group.size)
                    self.norms[group.root] = self.norms.get(group.root, 0) + per

    def cost(self, kind: str, removed: Mapping[str, int]) -> int:
        """Return the whole network's MACs or parameters with ``removed`` channels per root."""
        total = self.before[kind]
        for name in self.rows.keys() | self.columns.keys():
            total -= self._saved(name, kind, removed)
        if kind == "params":
            total -= sum(self.norms.get(root, 0) * n for root, n in removed.items())
        return total

    def layer(self, name: str, kind: str, removed: Mapping[str, int]) -> int:
        """Return one layer's MACs or parameters."""
        layer = self.layers[name]
        return (layer.macs if kind == "macs" else layer.params) - self._saved(name, kind, removed)

    def _saved(self, name: str, kind: str, removed: Mapping[str, int]) -> int:
        layer = self.layers[name]
        module = layer.module
        lost_out = sum(n * removed.get(root, 0) for root, n in self.rows.get(name, {}).items())
        lost_in = sum(n * removed.get(root, 0) for root, n in self.columns.get(name, {}).items())
        share = 1 - lost_out / layer.channels()
        if not layer.is_depthwise:
            share *= 1 - lost_in / layer.channels(into=True)
        if kind == "macs":
            return round(layer.macs * (1 - share))
        weights = module.weight.numel()
        return round(weights * (1 - share)) + (lost_out if module.bias is not None else 0)
