"""The flags of the training loop, shared by every verb that trains: the fields of `convsmith.training.TrainConfig`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Literal

from convsmith.cli.shell.options import Work, option

if TYPE_CHECKING:
    from convsmith.training import TrainConfig

_LOOP, _LOG = "optimisation", "record"


@dataclass(frozen=True, kw_only=True)
class LoopOptions(Work):
    """How to optimise."""

    epochs: int | None = option(None, "passes over the data (default: 20)", group=_LOOP, metavar="N")
    steps: int | None = option(None, "updates, instead of epochs", group=_LOOP, metavar="N")
    lr: float = option(0.1, "base learning rate", group=_LOOP, metavar="X")
    optimizer: str = option("sgd", "update rule, by timm's name: sgd, adamw, lamb, ...", group=_LOOP, metavar="NAME")
    momentum: float = option(0.9, "of SGD", group=_LOOP, metavar="X")
    nesterov: bool = option(True, "Nesterov form of SGD", group=_LOOP)
    weight_decay: float = option(5e-4, "not applied to biases and norms", group=_LOOP, metavar="X")
    layer_decay: float | None = option(None, "factor of lr from each layer to the one before", group=_LOOP, metavar="X")
    schedule: Literal["cosine", "step", "inverse", "constant", "poly", "tanh", "wsd", "rsqrt"] = option(
        "cosine", "how lr falls", group=_LOOP
    )
    min_lr: float = option(0.0, "where lr ends", group=_LOOP, metavar="X")
    milestones: tuple[float, ...] = option(
        (0.5, 0.75), "shares of all updates after which step falls", group=_LOOP, metavar="X"
    )
    step_factor: float = option(0.1, "what step multiplies lr by", group=_LOOP, metavar="X")
    warmup_steps: int = option(0, "updates of linear warm-up", group=_LOOP, metavar="N")
    warmup_share: float | None = option(None, "the same as a share of all updates", group=_LOOP, metavar="X")
    clip: float | None = option(None, "largest gradient norm", group=_LOOP, metavar="X")
    accumulate: int = option(1, "batches per update", group=_LOOP, metavar="N")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = option("auto", "auto: bf16 on a GPU that has it", group=_LOOP)
    ema: float | None = option(None, "decay of a weight average, which is then evaluated", group=_LOOP, metavar="X")
    patience: int | None = option(None, "evaluations without gain before stopping", group=_LOOP, metavar="N")
    restore: Literal["last", "best"] = option("last", "weights kept at the end", group=_LOOP)
    evaluate_every: int | None = option(
        None, "updates between evaluations (default: an epoch)", group=_LOG, metavar="N"
    )
    checkpoint_every: int | None = option(
        None, "updates between checkpoints (default: an epoch)", group=_LOG, metavar="N"
    )
    keep_last: int = option(2, "last checkpoints kept, beside the best", group=_LOG, metavar="N")
    log_every: int = option(20, "updates between log rows", group=_LOG, metavar="N")
    trackers: tuple[str, ...] = option((), "tensorboard, wandb, mlflow", group=_LOG, metavar="NAME")


def train_config(arguments: LoopOptions) -> TrainConfig:
    """Return the loop's configuration, or raise `InvalidArgument` for the first value outside its rule."""
    from convsmith.training import TrainConfig

    names = [field.name for field in fields(LoopOptions)]
    known = {field.name for field in fields(TrainConfig)}
    return TrainConfig(**{name: getattr(arguments, name) for name in names if name in known})


def check(arguments: LoopOptions) -> None:
    """Refuse settings outside their rules and devices that are not there."""
    from convsmith.training import resolve_device

    train_config(arguments)
    resolve_device(arguments.device)
