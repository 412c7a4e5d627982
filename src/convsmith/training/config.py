"""The training loop's configuration: one frozen dataclass, every rule checked before any work."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, get_origin, get_type_hints

from convsmith.arguments import integer, number, of_type, one_of
from convsmith.errors import InvalidArgument

DEFAULT_EPOCHS = 20
SCHEDULES = ("cosine", "step", "inverse", "constant", "poly", "tanh", "wsd", "rsqrt")
PRECISIONS = ("auto", "fp32", "bf16", "fp16")
DEVICES = ("auto", "cpu", "cuda", "mps", "xpu")
RESTORES = ("last", "best")
TRACKERS = ("tensorboard", "wandb", "mlflow")
#: fields that may differ when a run is resumed: they do not change the weights that come out
RESUME_FREE = frozenset({"device", "log_every", "checkpoint_every", "keep_last", "trackers"})
_WHOLE: dict[str, int] = {
    **dict.fromkeys(("steps", "epochs", "accumulate", "evaluate_every", "checkpoint_every", "keep_last"), 1),
    "log_every": 1,
    "patience": 1,
    "warmup_steps": 0,
    "seed": 0,
}
_REAL: dict[str, dict[str, float]] = {
    **{key: {"above": 0} for key in ("lr", "eps", "clip", "step_factor")},
    **{key: {"least": 0} for key in ("weight_decay", "gamma", "power", "min_lr", "warmup_lr")},
    **{key: {"least": 0, "below": 1} for key in ("momentum", "beta1", "beta2", "ema", "warmup_share")},
    "layer_decay": {"above": 0, "most": 1},
    "milestones": {"above": 0, "below": 1},
}


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
        weight_decay: L2 factor; biases and norm parameters (at most one dimension) are exempt.
        decay_all: exempt none of them.
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

        for name, kind in get_type_hints(type(self)).items():
            if kind is bool or get_origin(kind) is tuple:
                object.__setattr__(self, name, of_type(name, getattr(self, name), kind))
        if self.steps is not None and self.epochs is not None:
            rule = "give a number of steps or a number of epochs, not both"
            raise InvalidArgument(rule, argument="steps, epochs", given=(self.steps, self.epochs))
        for name, least in _WHOLE.items():
            if getattr(self, name) is not None:
                integer(name, getattr(self, name), least=least)
        for name, bounds in _REAL.items():
            value = getattr(self, name)
            for one in value if isinstance(value, tuple) else (value,):
                if one is not None:
                    number(name, one, **bounds)
        if self.warmup_steps and self.warmup_share is not None:
            given = (self.warmup_steps, self.warmup_share)
            rule = "one says how long the warm-up is"
            raise InvalidArgument(rule, argument="warmup_steps, warmup_share", given=given)
        one_of("schedule", self.schedule, SCHEDULES)
        one_of("precision", self.precision, PRECISIONS)
        one_of("restore", self.restore, RESTORES)
        one_of("optimizer", str(self.optimizer).split("_")[-1], [str(name) for name in list_optimizers()])
        one_of("device", str(self.device).split(":")[0], DEVICES)
        for tracker in self.trackers:
            one_of("trackers", tracker, TRACKERS)
        if list(self.milestones) != sorted(set(self.milestones)):
            raise InvalidArgument("milestones must grow", argument="milestones", given=self.milestones)

    def total_steps(self, batches_per_epoch: int) -> int:
        """Return the number of updates for a loader of this length; one takes an epoch's batches at most."""
        if self.accumulate > max(1, batches_per_epoch):
            rule, hint = "an update takes no more batches than an epoch has", "a smaller accumulate, or smaller batches"
            given = f"{self.accumulate} of {batches_per_epoch}"
            raise InvalidArgument(rule, argument="accumulate", given=given, hint=hint)
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
        """Return a dictionary that JSON can hold; ``TrainConfig(**value)`` reads it back."""
        return {**asdict(self), "milestones": list(self.milestones), "trackers": list(self.trackers)}
