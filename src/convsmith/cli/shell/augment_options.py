"""The flags of training transforms and mixing, by timm's names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from convsmith.cli.shell.options import Computation, option
from convsmith.errors import InvalidArgument

_GROUP = "augmentation"
#: flags that `timm.data.create_transform` spells otherwise
_SPELLED = {"aa": "auto_augment", "reprob": "re_prob", "remode": "re_mode", "recount": "re_count"}
_SPELLED["train_interpolation"] = "interpolation"


@dataclass(frozen=True, kw_only=True)
class AugmentOptions(Computation):
    """How training images are changed."""

    augment: str = option(
        "none", "random changes of training images; see methods augmentation", metavar="NAME", group=_GROUP
    )
    aa: str | None = option(
        None, "RandAugment, AutoAugment or AugMix: rand-m9-mstd0.5, original, augmix-m5-w3", group=_GROUP, metavar="X"
    )
    color_jitter: float | None = option(None, "brightness, contrast and saturation", group=_GROUP, metavar="X")
    reprob: float | None = option(None, "probability of random erasing", group=_GROUP, metavar="X")
    remode: Literal["const", "rand", "pixel"] | None = option(None, "what erasing fills in", group=_GROUP)
    recount: int | None = option(None, "areas erased at most", group=_GROUP, metavar="N")
    scale: tuple[float, float] | None = option(None, "share of the area a crop keeps (0.08 1)", group=_GROUP)
    ratio: tuple[float, float] | None = option(None, "aspect of a crop (0.75 1.33)", group=_GROUP)
    hflip: float | None = option(None, "probability of a mirror image (0.5)", group=_GROUP, metavar="X")
    vflip: float | None = option(None, "probability of an image upside down", group=_GROUP, metavar="X")
    train_interpolation: str | None = option(None, "random, bilinear, bicubic", group=_GROUP, metavar="NAME")
    mixup: float = option(0.0, "alpha of mixup, 0 for none", group=_GROUP, metavar="X", least=0)
    cutmix: float = option(0.0, "alpha of CutMix, 0 for none", group=_GROUP, metavar="X", least=0)
    mixup_prob: float = option(1.0, "share of batches that are mixed", group=_GROUP, metavar="X", least=0, most=1)
    mixup_switch_prob: float = option(
        0.5, "share of CutMix where both are on", group=_GROUP, metavar="X", least=0, most=1
    )
    mixup_mode: Literal["batch", "pair", "elem"] = option("batch", "one factor a batch, pair or image", group=_GROUP)


def transform_settings(arguments: AugmentOptions) -> dict[str, Any]:
    """Return the settings of timm's training transform that were given; refuse them without ``--augment imagenet``."""
    names = ("aa", "color_jitter", "reprob", "remode", "recount", "scale", "ratio", "hflip", "vflip")
    given = {n: getattr(arguments, n) for n in (*names, "train_interpolation") if getattr(arguments, n) is not None}
    if given and arguments.augment != "imagenet":
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        rule = "these flags belong to timm's training transform"
        raise InvalidArgument(rule, argument=flags, hint="add --augment imagenet")
    return {_SPELLED.get(name, name): value for name, value in given.items()}


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
