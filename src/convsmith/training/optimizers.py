"""From a task's parameter groups to a torch optimizer."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from convsmith.errors import InvalidArgument
from convsmith.training.config import TrainConfig
from convsmith.training.task import Task


def split_decay(groups: list[dict[str, Any]], weight_decay: float) -> list[dict[str, Any]]:
    """Split each group in two: tensors of two and more dimensions decay, biases and norm parameters do not.

    A group that sets ``weight_decay`` itself is left as it is.
    """
    out = []
    for group in groups:
        if "weight_decay" in group:
            out.append(group)
            continue
        rest = {k: v for k, v in group.items() if k != "params"}
        params = list(group["params"])
        for decays, decay in ((True, weight_decay), (False, 0.0)):
            chosen = [p for p in params if (p.ndim > 1) == decays]
            if chosen:
                out.append({**rest, "params": chosen, "weight_decay": decay})
    return out


def create_optimizer(task: Task, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer over ``task.parameter_groups(config.lr)``.

    Every group keeps its own base rate in ``initial_lr``; schedules multiply it.

    Raises:
        InvalidArgument: nothing to train, or a parameter in two groups.
    """
    groups = [{**g, "params": list(g["params"])} for g in task.parameter_groups(config.lr)]
    groups = [g for g in groups if g["params"]]
    params: list[nn.Parameter] = [p for g in groups for p in g["params"]]
    if not params:
        raise InvalidArgument(
            "the task has no parameter to train", argument=type(task).__name__, hint="leave requires_grad on for some"
        )
    if len({id(p) for p in params}) != len(params):
        raise InvalidArgument(
            "a parameter stands in two groups", argument="parameter_groups", given=type(task).__name__
        )
    if not config.decay_all:
        groups = split_decay(groups, config.weight_decay)
    for group in groups:
        group["initial_lr"] = group["lr"]
    if config.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
            weight_decay=config.weight_decay,
        )
    return torch.optim.AdamW(
        groups, lr=config.lr, betas=(config.beta1, config.beta2), eps=config.eps, weight_decay=config.weight_decay
    )


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Set every group's rate to ``factor`` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
