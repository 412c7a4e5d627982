"""From a task and a configuration to timm's optimizer and learning-rate schedule."""

from __future__ import annotations

from typing import Any

import torch

from convsmith.errors import InvalidArgument
from convsmith.training.config import TrainConfig
from convsmith.training.task import Task


def create_optimizer(task: Task, config: TrainConfig) -> torch.optim.Optimizer:
    """Build the configured optimizer over ``task.parameter_groups(config.lr)``.

    In each group tensors of one dimension (biases, norms) do not decay, unless the group sets ``weight_decay`` or
    ``config.decay_all`` is on; with ``config.layer_decay`` the model's parameters get timm's ``lr_scale`` by depth.

    Raises:
        InvalidArgument: nothing to train, a parameter in two groups, an optimizer that timm does not know.
    """
    from timm.optim import create_optimizer_v2, get_optimizer_info, param_groups_layer_decay

    groups = [{**g, "params": list(g["params"])} for g in task.parameter_groups(config.lr)]
    params = [p for g in groups for p in g["params"]]
    if not params:
        rule = "the task has no parameter to train"
        raise InvalidArgument(rule, argument=type(task).__name__, hint="leave requires_grad on for some")
    if len({id(p) for p in params}) != len(params):
        rule = "a parameter stands in two groups"
        raise InvalidArgument(rule, argument="parameter_groups", given=type(task).__name__)
    scales = {}
    if config.layer_decay is not None:
        layers = param_groups_layer_decay(task.model, config.weight_decay, layer_decay=config.layer_decay)
        scales = {id(p): float(g["lr_scale"]) for g in layers for p in g["params"]}
    split: dict[tuple[int, float, bool], dict[str, Any]] = {}
    for number, group in enumerate(groups):
        for p in group["params"]:
            scale, exempt = scales.get(id(p), 1.0), p.ndim <= 1 and not config.decay_all
            decay = group.get("weight_decay", 0.0 if exempt else config.weight_decay)
            same = {**group, "params": [], "weight_decay": decay, **({"lr_scale": scale} if scales else {})}
            split.setdefault((number, scale, bool(exempt)), same)["params"].append(p)
    name = config.optimizer.split("_")[-1]
    about = get_optimizer_info(name)
    more: dict[str, Any] = {"betas": (config.beta1, config.beta2)} if about.has_betas and about.num_betas == 2 else {}
    if name.startswith("sgd"):
        more["nesterov"] = config.nesterov and config.momentum > 0
    return create_optimizer_v2(
        list(split.values()),
        opt=config.optimizer,
        lr=config.lr,
        weight_decay=config.weight_decay,
        momentum=config.momentum,
        **({**more, "eps": config.eps} if about.has_eps else more),
    )


def create_schedule(optimizer: torch.optim.Optimizer, config: TrainConfig, total: int) -> Any:
    """Return the schedule; ``step_update(t)`` sets the rates of update ``t`` (0-based), a pure function of ``t``.

    The schedule proper begins after ``config.warmup(total)`` updates of linear warm-up from ``config.warmup_lr``.
    """
    from timm.scheduler import create_scheduler_v2

    warmup = config.warmup(total)
    length = total - warmup
    if config.schedule == "inverse":
        return InverseScheduler(optimizer, config, warmup)
    found, _ = create_scheduler_v2(
        optimizer,
        sched="multistep" if config.schedule == "step" else config.schedule,
        num_epochs=length,
        warmup_epochs=warmup,
        warmup_lr=config.warmup_lr,
        warmup_prefix=True,
        min_lr=config.min_lr,
        decay_rate=config.power if config.schedule == "poly" else config.step_factor,
        # timm counts a milestone from the update before it on
        decay_milestones=[-int(-m * length // 1) + 1 for m in config.milestones],
        step_on_epochs=False,
        updates_per_epoch=1,
    )
    assert found is not None
    return found


class InverseScheduler:
    """``lr * (1 + gamma t) ** -power``, Caffe's "inv" policy, which timm lacks.

    Ganin and Lempitsky (2015) use gamma 10/total.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, config: TrainConfig, warmup: int) -> None:
        self.optimizer, self.config, self.warmup = optimizer, config, warmup
        self.base = [group.setdefault("initial_lr", group["lr"]) for group in optimizer.param_groups]

    def step_update(self, t: int) -> None:
        """Set the rates of update ``t``."""
        first, warmup = self.config.warmup_lr, self.warmup
        for group, base in zip(self.optimizer.param_groups, self.base, strict=True):
            if t < warmup:
                rate = first + t / warmup * (base - first)
            else:
                rate = base * (1 + self.config.gamma * (t - warmup)) ** -self.config.power
            group["lr"] = rate * group.get("lr_scale", 1.0)
