"""What a network returns: the tensors of any structure, and the class scores of a classifier."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from convsmith.arguments import spelled
from convsmith.errors import InvalidArgument

#: keys and attributes under which models return their scores beside other things
_SCORES = ("logits", "out")


def output_tensors(output: Any) -> tuple[Tensor, ...]:
    """Return all tensors of an output in order: a tensor, or tuples, lists, mappings and dataclasses of outputs.

    Examples:
        >>> len(output_tensors({"a": torch.zeros(1), "b": (torch.zeros(2), torch.zeros(3))}))
        3
    """
    if isinstance(output, Tensor):
        return (output,)
    if isinstance(output, Mapping):
        parts = list(output.values())
    elif isinstance(output, tuple | list):
        parts = list(output)
    else:
        named = dataclasses.is_dataclass(output) and not isinstance(output, type)
        parts = [getattr(output, item.name) for item in dataclasses.fields(output)] if named else []
    return tuple(tensor for part in parts for tensor in output_tensors(part))


def main_output(output: Any) -> Tensor:
    """Return the tensor an output is about: itself, its ``logits`` or ``out``, else the first of its tensors.

    Raises `InvalidArgument` where there is none.

    Examples:
        >>> main_output({"logits": torch.zeros(2, 3), "features": torch.ones(2, 4)}).shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output
    for key in _SCORES:
        part = output.get(key) if isinstance(output, Mapping) else getattr(output, key, None)
        if isinstance(part, Tensor):
            return part
    found = output_tensors(output)
    if not found:
        hint = "wrap it in a module that returns one, or a tuple or dictionary of tensors"
        raise InvalidArgument("the network returned no tensor", given=spelled(output), hint=hint)
    return found[0]


def class_scores(output: Any, *, classes: int = 1) -> Tensor:
    """Return the logits [B, K] of a classifier's output: a tensor, or the ``logits`` or first tensor of a structure.

    Raises `InvalidArgument` where they are no matrix with at least ``classes`` columns.

    Examples:
        >>> class_scores({"logits": torch.zeros(2, 10)}).shape
        torch.Size([2, 10])
    """
    scores = main_output(output)
    if scores.dim() != 2 or scores.shape[1] < classes:
        rule, given = f"a classifier's output must be logits [B, K] with K >= {classes}", f"output {spelled(output)}"
        raise InvalidArgument(rule, given=given, hint="wrap the network so that forward(images) returns the logits")
    return scores


def joined_output(output: Any) -> Tensor:
    """Return an output as one tensor to compare with another: itself, or its floating tensors as [B, N].

    Tensors of a structure are flattened image by image; those whose first dimension is not the first one's are left
    out (anchors, scalars). Raises `InvalidArgument` where there is no tensor.

    Examples:
        >>> joined_output((torch.zeros(2, 3), torch.ones(2, 4))).shape
        torch.Size([2, 7])
    """
    main = main_output(output)
    found = [t for t in output_tensors(output) if t.is_floating_point() and t.dim() > 0 and len(t) == len(main)]
    if len(found) <= 1:
        return main
    return torch.cat([t.flatten(1) if t.dim() > 1 else t[:, None] for t in found], dim=1)
