"""What of an image reaches the prediction through each gated layer: the gradient along the route."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsmith.interpretation.gates import GatedNetwork


def pathway_norms(network: GatedNetwork, gates: Tensor, label: Tensor, *, layers: bool = True) -> tuple[Tensor, Tensor]:
    """Return logits [B, K] under ``gates`` [B, total], and the norms [B, 1 + L] of the pathway gradient.

    First the whole gradient: that of the logit ``label`` [B] by what enters the gated part of the network (the image,
    or what the layers before the first gate make of it). Then, unless ``layers`` is False, for every gated layer the
    gradient along the paths that pass it: the whole one where all paths do. Khakzar et al., CVPR 2021, section 3.4.
    """
    with network.entrances() as entrances:
        logits = network.logits(gates, watch=layers)
        outputs = [network.outputs[number] for number in range(len(network.plan.sites))] if layers else []
        chosen = logits.gather(1, label[:, None]).sum()
        slopes = torch.autograd.grad(chosen, [*entrances, *outputs], retain_graph=True, allow_unused=True)
        whole = _norm(slopes[: len(entrances)], logits)
        columns = [whole]
        for output, slope in zip(outputs, slopes[len(entrances) :], strict=True):
            if slope is None:
                columns.append(torch.zeros_like(whole))
            elif _only_way(logits, output):
                columns.append(whole)
            else:
                found = torch.autograd.grad(output, entrances, slope, retain_graph=True, allow_unused=True)
                columns.append(_norm(found, logits))
    network.outputs.clear()
    return logits.detach(), torch.stack(columns, dim=1)


def _norm(slopes: Sequence[Tensor | None], like: Tensor) -> Tensor:
    """Return the norm [B] over all of ``slopes``, those that are None counting as 0."""
    norms = [torch.zeros_like(like[:, 0]), *(s.flatten(1).to(like).norm(dim=1) for s in slopes if s is not None)]
    return torch.stack(norms).norm(dim=0).detach()


def _only_way(end: Tensor, through: Tensor) -> bool:
    """Tell whether every differentiable path from an entrance to ``end`` passes the tensor ``through``."""
    seen: set[Any] = {through.grad_fn}
    left: list[Any] = [end.grad_fn]
    while left:
        node = left.pop()
        if node is None or node in seen:
            continue
        if hasattr(node, "variable"):
            return False
        seen.add(node)
        left.extend(after for after, _ in node.next_functions)
    return True
