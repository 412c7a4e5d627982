"""Take channels out of a network, describe the new widths as JSON, and check the result against masking."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.compression.methods.channels import Group, dependency_graph, hide, inputs_of_parts
from convsmith.errors import RunFailed
from convsmith.inspection.layers import LayerInventory
from convsmith.inspection.modes import copied, evaluating
from convsmith.inspection.outputs import joined_output

#: largest relative difference between removal and masking that float32 rounding explains
AGREE = 1e-3
_WIDTHS = ("in_channels", "out_channels", "groups", "in_features", "out_features", "num_features")


def traceable(seen: LayerInventory) -> bool:
    """Return whether every weight that worked belongs to a layer torch-pruning understands.

    Weights used by functional calls and foreign layers are invisible to its tracing, and so are channels returned in a
    dictionary or tuple beside the rest; groups near them need a trial. So do those of token maps [B, ..., N, C]: heads
    are cut out of queries, keys and values by numbers that stay in the code.
    """
    if not isinstance(seen.output, Tensor):
        return False
    if any(layer.kind == "linear" and layer.calls and len(layer.output_shape) > 2 for layer in seen.layers):
        return False
    return not any(layer.problem is not None and (layer.calls or "function" in layer.problem) for layer in seen.layers)


def remove(model: nn.Module, seen: LayerInventory, groups: Mapping[str, Group], going: Mapping[str, Tensor]) -> None:
    """Remove ``going``, channel numbers by root layer, from ``model`` in place."""
    parts = {groups[root].traced for root in going}
    given = {"": seen.example} if parts == {""} else inputs_of_parts(model, seen.example)
    graphs = {part: dependency_graph(model.get_submodule(part), given[part]) for part in parts}
    learns = {name: p.requires_grad for name, p in model.named_parameters()}
    for root, channels in going.items():
        module = model.get_submodule(root)
        graph = graphs[groups[root].traced]
        pruner = graph.get_pruner_of_module(module)
        graph.get_pruning_group(module, pruner.prune_out_channels, channels.tolist()).prune()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(learns[name])


def remove_and_compare(
    model: nn.Module, seen: LayerInventory, groups: Mapping[str, Group], going: Mapping[str, Tensor]
) -> float:
    """Remove ``going`` in place; return max |model - masked| / max |masked| on two images of the example.

    ``masked``: the network as it was, whose consumers read zeros in place of the same channels.

    Raises:
        RunFailed: the smaller network does not run at all, or returns another shape.
    """
    masked = copied(model)
    for root, channels in going.items():
        hide(masked, groups[root], channels)
    remove(model, seen, groups, going)
    with evaluating(model), evaluating(masked), torch.no_grad():
        try:
            got = joined_output(model(seen.example[:2]))
        except RuntimeError as error:
            raise RunFailed("the pruned network does not run", given=str(error)[:300]) from error
        want = joined_output(masked(seen.example[:2]))
    if got.shape != want.shape:
        raise RunFailed(
            "the pruned network returns another shape", given=f"its channels are in the output ({list(got.shape)})"
        )
    return float((got - want).abs().max()) / max(float(want.abs().max()), 1e-12)


def structure(model: nn.Module) -> dict[str, dict[str, Any]]:
    """Return widths and tensor shapes of every module that owns tensors."""
    out = {}
    for name, module in model.named_modules():
        own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
        shapes = {key: list(value.shape) for key, value in own}
        if shapes:
            widths = {key: getattr(module, key, None) for key in _WIDTHS}
            attributes = {key: value for key, value in widths.items() if isinstance(value, int)}
            out[name] = {"attributes": attributes, "shapes": shapes}
    return out


def restructure(model: nn.Module, layers: Mapping[str, Any]) -> nn.Module:
    """Give the modules named in ``layers`` the widths and shapes that `structure` described, in place."""
    for name, form in layers.items():
        module = model.get_submodule(name)
        for key, value in form["attributes"].items():
            setattr(module, key, value)
        for key, shape in form["shapes"].items():
            old = getattr(module, key)
            new = torch.zeros(shape, dtype=old.dtype, device=old.device)
            setattr(module, key, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
    return model


def rows_left(seen: LayerInventory, groups: Mapping[str, Group], going: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the output channels that will be left of every layer that loses ``going``."""
    layers = seen.by_name()
    stays: dict[str, Tensor] = {}
    for root, channels in going.items():
        for part in groups[root].producers:
            rows = stays.setdefault(part.name, torch.ones(layers[part.name].channels(), dtype=torch.bool))
            rows[part.own[torch.isin(part.root, channels)]] = False
    return {name: rows.nonzero()[:, 0] for name, rows in stays.items()}
