"""The flags of training transforms and mixing; the settings of a transform by its own names."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from convsmith.cli.shell.method_settings import keyword_arguments
from convsmith.cli.shell.options import Computation, option

_augmentation = partial(option, group="augmentation")


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
