"""The flags of training: those of the loop, the fields of `convsmith.training.TrainConfig`, and those of its images."""

from __future__ import annotations

from dataclasses import dataclass, fields
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import environment
from convsmith.cli.shell.method_settings import keyword_arguments
from convsmith.cli.shell.options import Computation, Work, option

if TYPE_CHECKING:
    from convsmith.training import TrainConfig

_loop, _log = partial(option, group="optimisation"), partial(option, group="record")
_augmentation = partial(option, group="augmentation")


@dataclass(frozen=True, kw_only=True)
class LoopOptions(Work):
    """How to optimise."""

    epochs: int | None = _loop(None, "passes over the data (default: 20)", metavar="N", one_of="length")
    steps: int | None = _loop(None, "updates, instead of epochs", metavar="N", one_of="length")
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


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(Computation):
    """How training images are changed."""

    augment: str = _augmentation("none", "random changes of training images; see methods augmentation", metavar="NAME")
    set: tuple[str, ...] = _augmentation(
        (),
        "settings of the augmentation; imagenet takes those of timm's create_transform, like re_prob=0.25",
        metavar="NAME=VALUE",
    )
    mixup: float = _augmentation(0.0, "alpha of mixup, 0 for none", metavar="X", least=0)
    cutmix: float = _augmentation(0.0, "alpha of CutMix, 0 for none", metavar="X", least=0)
    mixup_prob: float = _augmentation(1.0, "share of batches that are mixed", metavar="X", least=0, most=1)
    mixup_switch_prob: float = _augmentation(0.5, "share of CutMix where both are on", metavar="X", least=0, most=1)
    mixup_mode: Literal["batch", "pair", "elem"] = _augmentation("batch", "one factor a batch, pair or image")


def train_config(arguments: LoopOptions) -> TrainConfig:
    """Return the loop's configuration, or raise `InvalidArgument` for a value outside its rule or an absent device."""
    from convsmith.training import TrainConfig, resolve_device

    names = {field.name for field in fields(LoopOptions)} & {field.name for field in fields(TrainConfig)}
    config = TrainConfig(**{name: getattr(arguments, name) for name in names})
    resolve_device(config.device)
    return config


def check_read(arguments: Any) -> None:
    """Refuse flags of `train` that nothing reads as the others are; its configuration is right."""
    from timm.optim import get_optimizer_info

    rule = arguments.optimizer.split("_")[-1]
    step = (arguments.schedule == "step", "--schedule step")
    mixed = (arguments.mixup or arguments.cutmix, "--mixup X or --cutmix X")
    where = {
        "--momentum": (get_optimizer_info(rule).has_momentum, "an --optimizer that has one"),
        "--nesterov": (rule.startswith("sgd"), "--optimizer sgd"),
        **dict.fromkeys(("--milestones", "--step-factor"), step),
        **dict.fromkeys(("--mixup-prob", "--mixup-mode"), mixed),
        "--mixup-switch-prob": (arguments.mixup and arguments.cutmix, "--mixup X and --cutmix X"),
        "--temperature": (arguments.teacher, "--teacher MODEL"),
    }
    environment.refuse_unread(where)


def transform_settings(arguments: AugmentOptions) -> dict[str, Any]:
    """Return the settings of the augmentation, tried on a plain input before any image is read."""
    from convsmith.data import AUGMENTATIONS, Preprocessing

    found = keyword_arguments(arguments.set, "--set", "a setting")
    AUGMENTATIONS[arguments.augment](Preprocessing(), **found)
    return found


def mixup_settings(arguments: AugmentOptions, label_smoothing: float = 0.0) -> dict[str, Any] | None:
    """Return the settings of `timm.data.Mixup`, None where nothing is mixed."""
    if not arguments.mixup and not arguments.cutmix:
        return None
    return {
        "mixup_alpha": arguments.mixup,
        "cutmix_alpha": arguments.cutmix,
        "prob": arguments.mixup_prob,
        "switch_prob": arguments.mixup_switch_prob,
        "mode": arguments.mixup_mode,
        "label_smoothing": label_smoothing,
    }
