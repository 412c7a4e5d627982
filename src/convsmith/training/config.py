"""The training loop's configuration: one frozen dataclass, every rule checked before any work."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from convsmith.errors import InvalidArgument, close_matches

DEFAULT_EPOCHS = 20
SCHEDULES = ("cosine", "step", "inverse", "constant", "poly", "tanh", "wsd", "rsqrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
RESTORES = ("last", "best")
TRACKERS = ("tensorboard", "wandb", "mlflow")
#: fields that may differ when a run is resumed: they do not change the weights that come out
RESUME_FREE = frozenset({"device", "log_every", "checkpoint_every", "keep_last", "trackers"})


@dataclass(frozen=True)
class TrainConfig:
    """What `convsmith.training.fit` does, apart from the task and the data.

    A step is one optimizer update; it consumes ``accumulate`` batches.

    Args:
        steps: updates in all; or
        epochs: passes over the loader (20 if neither is given; both is an error).
        lr: base learning rate; a task may give its parameter groups multiples of it.
        optimizer: any name of timm's (``timm.optim.list_optimizers()``): ``"sgd"``, ``"adamw"``, ``"lamb"``, ...
        momentum, nesterov: of SGD (without momentum the two Nesterov forms are the same plain SGD).
        beta1, beta2, eps: of the optimizers that have them.
        layer_decay: factor of the rate from each layer to the one before it (timm's), None for one rate.
        weight_decay: L2 factor; biases and norm parameters (at most one dimension) are exempt unless
        decay_all: is set.
        schedule: timm's ``"cosine"``, ``"poly"``, ``"tanh"``, ``"wsd"``, ``"rsqrt"`` down to ``min_lr``; ``"step"``:
            times ``step_factor`` at each of ``milestones`` (fractions of all steps); ``"inverse"``:
            ``lr * (1 + gamma * t) ** -power``; ``"constant"``.
        warmup_steps: linear warm-up from ``warmup_lr`` before the schedule begins; shorter than the run.
        warmup_share: the same as a share of all steps, for runs whose length follows from the data.
        clip: largest gradient norm, None for no clipping.
        accumulate: batches per step.
        precision: ``"auto"`` is bf16 on a GPU that has it and fp32 elsewhere.
        ema: decay of timm's ``ModelEmaV3`` (warmed up), None for none. With it, evaluation and the finished task use
            the average.
        patience: evaluations without improvement of the task's ``monitor`` metric before an early stop, None for never.
        restore: which weights the task holds after ``fit``: the ``"last"`` or the ``"best"`` evaluated ones.
        seed: of every random draw made during training.
        device: ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ...
        evaluate_every: steps between evaluations; None for the end of every epoch.
        checkpoint_every: steps between checkpoints; None for the end of every epoch.
        keep_last: the last checkpoints kept (the best one is always kept too).
        log_every: steps between rows of the log.
        sync_batchnorm: with several GPU processes, compute batch statistics over all of them.
        find_unused: with several processes, allow parameters that take no part in a step's loss.
        trackers: accelerate's experiment trackers, none by default.

    Raises:
        InvalidArgument: for every value outside its rule, with close matches for names.
    """

    steps: int | None = None
    epochs: int | None = None
    lr: float = 0.1
    optimizer: str = "sgd"
    momentum: float = 0.9
    nesterov: bool = True
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 5e-4
    decay_all: bool = False
    layer_decay: float | None = None
    schedule: str = "cosine"
    min_lr: float = 0.0
    milestones: tuple[float, ...] = (0.5, 0.75)
    step_factor: float = 0.1
    gamma: float = 0.001
    power: float = 0.75
    warmup_steps: int = 0
    warmup_share: float | None = None
    warmup_lr: float = 1e-5
    clip: float | None = None
    accumulate: int = 1
    precision: str = "auto"
    ema: float | None = None
    patience: int | None = None
    restore: str = "last"
    seed: int = 0
    device: str = "auto"
    evaluate_every: int | None = None
    checkpoint_every: int | None = None
    keep_last: int = 2
    log_every: int = 20
    sync_batchnorm: bool = False
    find_unused: bool = False
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        from timm.optim import list_optimizers

        object.__setattr__(self, "milestones", tuple(self.milestones))
        object.__setattr__(self, "trackers", tuple(self.trackers))
        if self.steps is not None and self.epochs is not None:
            rule = "give a number of steps or a number of epochs, not both"
            raise InvalidArgument(rule, argument="steps, epochs", given=(self.steps, self.epochs))
        for name in ("steps", "epochs", "accumulate", "evaluate_every", "checkpoint_every", "keep_last", "log_every"):
            _whole(name, getattr(self, name), at_least=1)
        for name in ("warmup_steps", "patience", "seed"):
            _whole(name, getattr(self, name), at_least=1 if name == "patience" else 0)
        for name in ("lr", "eps", "clip", "step_factor"):
            _number(name, getattr(self, name), low=0, open_low=True)
        for name in ("weight_decay", "gamma", "power", "min_lr", "warmup_lr"):
            _number(name, getattr(self, name), low=0)
        for name in ("momentum", "beta1", "beta2", "ema"):
            _number(name, getattr(self, name), low=0, high=1, open_high=True)
        _number("warmup_share", self.warmup_share, low=0, high=1, open_high=True)
        if self.warmup_steps and self.warmup_share is not None:
            given = (self.warmup_steps, self.warmup_share)
            rule = "one says how long the warm-up is"
            raise InvalidArgument(rule, argument="warmup_steps, warmup_share", given=given)
        _number("layer_decay", self.layer_decay, low=0, high=1, open_low=True)
        for name, known in (
            ("schedule", SCHEDULES),
            ("precision", PRECISIONS),
            ("restore", RESTORES),
        ):
            _named(name, getattr(self, name), known)
        _named("optimizer", str(self.optimizer).split("_")[-1], [str(name) for name in list_optimizers()])
        _named("device", str(self.device).split(":")[0], DEVICES)
        for tracker in self.trackers:
            _named("tracker", tracker, TRACKERS)
        for milestone in self.milestones:
            _number("milestones", milestone, low=0, high=1, open_low=True, open_high=True)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise InvalidArgument("milestones must grow", argument="milestones", given=self.milestones)

    def total_steps(self, batches_per_epoch: int) -> int:
        """Return the number of updates for a loader of this length."""
        if self.steps is not None:
            return self.steps
        epochs = self.epochs if self.epochs is not None else DEFAULT_EPOCHS
        return math.ceil(epochs * batches_per_epoch / self.accumulate)

    def warmup(self, total: int) -> int:
        """Return the updates of warm-up in a run of ``total``."""
        if self.warmup_share is not None:
            return int(self.warmup_share * total)
        if self.warmup_steps >= max(1, total):
            hint = "fewer warmup_steps, or warmup_share=0.1"
            given = f"warmup_steps={self.warmup_steps}"
            raise InvalidArgument("a warm-up ends before its run", argument=f"{total} steps", given=given, hint=hint)
        return self.warmup_steps

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold; `from_json` reads it back."""
        return {**asdict(self), "milestones": list(self.milestones), "trackers": list(self.trackers)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> TrainConfig:
        """Read what `to_json` wrote; an unknown key is an error with close matches."""
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                rule = "no training setting has this name"
                raise InvalidArgument(rule, given=repr(key), hint=close_matches(str(key), known))
        return cls(**value)


def _whole(name: str, value: Any, at_least: int) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidArgument("must be a whole number", argument=name, given=repr(value))
    if value < at_least:
        raise InvalidArgument(f"must be {at_least} or more", argument=name, given=value)


def _number(
    name: str,
    value: Any,
    low: float,
    high: float = math.inf,
    open_low: bool = False,
    open_high: bool = False,
) -> None:
    if value is None:
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise InvalidArgument("must be a finite number", argument=name, given=repr(value))
    if value < low or value > high or (open_low and value == low) or (open_high and value == high):
        left, right = "(" if open_low else "[", ")" if open_high or high == math.inf else "]"
        raise InvalidArgument(f"must lie in {left}{low}, {high}{right}", argument=name, given=value)


def _named(name: str, value: Any, known: Iterable[str]) -> None:
    if value not in known:
        hint = close_matches(str(value), known)
        raise InvalidArgument(f"no {name} has this name", argument=name, given=repr(value), hint=hint)
