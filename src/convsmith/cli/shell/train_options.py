"""The flags of the training loop, shared by every verb that trains: the fields of `convsmith.training.TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Literal

from convsmith.cli.shell.options import Work, option

if TYPE_CHECKING:
    from convsmith.training import TrainConfig

_loop, _log = partial(option, group="optimisation"), partial(option, group="record")


@dataclass(frozen=True, kw_only=True)
class LoopOptions(Work):
    """How to optimise."""

    epochs: int | None = _loop(None, "passes over the data (default: 20)", metavar="N")
    steps: int | None = _loop(None, "updates, instead of epochs", metavar="N")
    lr: float = _loop(0.1, "base learning rate", metavar="X")
    optimizer: str = _loop("sgd", "update rule, by timm's name: sgd, adamw, lamb, ...", metavar="NAME")
    momentum: float = _loop(0.9, "of SGD", metavar="X")
    nesterov: bool = _loop(True, "Nesterov form of SGD")
    weight_decay: float = _loop(5e-4, "not applied to biases and norms", metavar="X")
    layer_decay: float | None = _loop(None, "factor of lr from each layer to the one before", metavar="X")
    schedule: Literal["cosine", "step", "inverse", "constant", "poly", "tanh", "wsd", "rsqrt"] = _loop(
        "cosine", "how lr falls"
    )
    min_lr: float = _loop(0.0, "where lr ends", metavar="X")
    milestones: tuple[float, ...] = _loop((0.5, 0.75), "shares of all updates after which step falls", metavar="X")
    step_factor: float = _loop(0.1, "what step multiplies lr by", metavar="X")
    warmup_steps: int = _loop(0, "updates of linear warm-up", metavar="N")
    warmup_share: float | None = _loop(None, "the same as a share of all updates", metavar="X")
    clip: float | None = _loop(None, "largest gradient norm", metavar="X")
    accumulate: int = _loop(1, "batches per update", metavar="N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = _loop("auto", "auto: bf16 on a GPU that has it")
    ema: float | None = _loop(None, "decay of a weight average, which is then evaluated", metavar="X")
    patience: int | None = _loop(None, "evaluations without gain before stopping", metavar="N")
    restore: Literal["last", "best"] = _loop("last", "weights kept at the end")
    evaluate_every: int | None = _log(None, "updates between evaluations (default: an epoch)", metavar="N")
    checkpoint_every: int | None = _log(None, "updates between checkpoints (default: an epoch)", metavar="N")
    keep_last: int = _log(2, "last checkpoints kept, beside the best", metavar="N")
    log_every: int = _log(20, "updates between log rows", metavar="N")
    trackers: tuple[str, ...] = _log((), "tensorboard, wandb, mlflow", metavar="NAME")


def train_config(arguments: LoopOptions) -> TrainConfig:
    """Return the loop's configuration, or raise `InvalidArgument` for a value outside its rule or an absent device."""
    from convsmith.training import TrainConfig, resolve_device

    resolve_device(arguments.device)
    names = [field.name for field in fields(LoopOptions)]
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(**{name: getattr(arguments, name) for name in names if name in known})
