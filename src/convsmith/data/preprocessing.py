"""What happens to an image on its way into a network: one plain configuration, in timm's own words.

The configuration belongs to the network and is stored beside its weights. The transforms are timm's.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, get_type_hints

from torch import nn

from convsmith.arguments import checked, number, of_type, one_of
from convsmith.data.pictures import Pipeline
from convsmith.errors import InvalidArgument, refusing
from convsmith.registry import check_settings

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming", "random")
CROP_MODES = ("center", "squash", "border")
_LARGEST_SIDE = 65536


@dataclass(frozen=True)
class Preprocessing:
    """Size, interpolation, crop and normalisation of a network's inputs; the fields of timm's data configuration.

    Args:
        input_size: (C, H, W) of the tensor that enters the network.
        interpolation: how PIL resizes.
        mean, std: per channel, for pixels in [0, 1].
        crop_pct: the image is resized to the input's side divided by this, then cropped.
        crop_mode: ``"center"`` keeps the aspect ratio and crops; ``"squash"`` does not keep it; ``"border"`` pads.

    Raises:
        InvalidArgument: a value of another type or out of its range, before any image is touched.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        for name, kind in {**get_type_hints(type(self)), "input_size": tuple[int, ...]}.items():
            object.__setattr__(self, name, of_type(name, getattr(self, name), kind))
        size = self.input_size
        if len(size) != 3 or not all(1 <= side <= _LARGEST_SIDE for side in size):
            rule = "an input has channels, height and width"
            raise InvalidArgument(rule, argument="input_size", given=size, hint="C, H, W")
        for name in ("mean", "std"):
            values = getattr(self, name)
            values = values * size[0] if len(values) == 1 else values
            if len(values) != size[0] or (name == "std" and not all(v > 0 for v in values)):
                rule = f"one mean and one positive std per channel: {size[0]}"
                raise InvalidArgument(rule, argument=name, given=values)
            object.__setattr__(self, name, values)
        number("crop_pct", self.crop_pct, least=0.05, most=4)
        one_of("interpolation", self.interpolation, INTERPOLATIONS)
        one_of("crop_mode", self.crop_mode, CROP_MODES)

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.input_size[0]

    def transform(self) -> Pipeline:
        """Return the evaluation path: PIL image -> normalised float tensor [C, H, W], bit-equal to timm's.

        An image of another kind (palette, CMYK, alpha, 16 bit, grey for a colour network) is converted first by
        `convsmith.data.pictures.upright`.
        """
        from timm.data import create_transform

        return Pipeline(create_transform(**asdict(self), is_training=False).transforms, self.channels)

    def train_transform(self, **settings: Any) -> Pipeline:
        """Return ``timm.data.create_transform(**config, is_training=True)``.

        Args:
            settings: by timm's names: ``auto_augment`` ("rand-m9-mstd0.5-inc1", "augmix-m5-w3", "original"),
                ``color_jitter``, ``hflip``, ``vflip``, ``scale``, ``ratio``, ``re_prob``, ``train_crop_mode``, ...

        Raises:
            InvalidArgument: a name or value that timm does not take.
        """
        from timm.data import create_transform

        known = [name for name in inspect.signature(create_transform).parameters if name != "is_training"]
        check_settings("the training transform", settings, known)
        asked = ", ".join(f"{name}={value!r}" for name, value in settings.items())
        errors = (AssertionError, KeyError, TypeError, ValueError)
        with refusing("timm makes no training transform of this", *errors, argument=asked):
            steps = create_transform(**{**asdict(self), **settings}, is_training=True).transforms
        return Pipeline(steps, self.channels)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold and that timm's ``create_transform`` takes; `from_json` reads it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: object) -> Preprocessing:
        """Read what `to_json` or timm's ``resolve_model_data_config`` wrote; refuse anything else."""
        if not isinstance(value, Mapping):
            raise InvalidArgument("a mapping is needed", argument="preprocessing", given=type(value).__name__)
        names = [f.name for f in fields(cls)]
        check_settings("a preprocessing", map(str, value), names, argument="preprocessing")
        return cls(**value)

    @classmethod
    @checked
    def from_model(cls, model: nn.Module) -> Preprocessing:
        """Return the configuration of a network: its own ``preprocessing``, else timm's resolved data configuration."""
        own = getattr(model, "preprocessing", None)
        if isinstance(own, Preprocessing):
            return own
        from timm.data import resolve_model_data_config

        channels = getattr(model, "in_chans", None)
        found = resolve_model_data_config(model) if getattr(model, "pretrained_cfg", None) else {}
        if isinstance(channels, int) and found and found["input_size"][0] != channels:
            found = {**found, "input_size": (channels, *found["input_size"][1:])}
            for name in ("mean", "std"):
                if len(found[name]) != channels:
                    found[name] = (math.fsum(found[name]) / len(found[name]),)
        return cls(**found)

    @classmethod
    def from_torchvision(cls, transforms: Any) -> Preprocessing:
        """Return the configuration of a torchvision ``weights.transforms()`` for classification."""
        crop, resized = transforms.crop_size[0], transforms.resize_size[0]
        share = crop / resized
        while math.floor(crop / share) < resized:  # timm rounds down; crop / (crop / resized) may fall below
            share = math.nextafter(share, 0.0)
        mean, std = tuple(transforms.mean), tuple(transforms.std)
        return cls((len(mean), crop, crop), transforms.interpolation.value, mean, std, share)


@dataclass(frozen=True)
class DataDescription:
    """What a model, a report and a run folder need to know about a data set.

    ``size`` is (height, width) in pixels, ``mean`` and ``std`` are per channel for pixels in [0, 1], ``counts`` the
    number of images by split, ``source`` one line on where the images come from. With ``interpolation``, ``crop_pct``
    and ``crop_mode`` they make the `Preprocessing`; interpolation "box" is the area average of images in memory.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    source: str = ""
    interpolation: str = "box"
    crop_pct: float = 1.0
    crop_mode: str = "center"

    @property
    def preprocessing(self) -> Preprocessing:
        """How an image file becomes an input of this data set."""
        size = (self.channels, *self.size)
        return Preprocessing(size, self.interpolation, self.mean, self.std, self.crop_pct, self.crop_mode)

    def seen_through(self, preprocessing: Preprocessing) -> DataDescription:
        """Return the description of the same images under another preprocessing."""
        channels, height, width = preprocessing.input_size
        rest = {k: v for k, v in asdict(preprocessing).items() if k != "input_size"}
        return replace(self, channels=channels, size=(height, width), **rest)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold; `from_json` reads it back."""
        return {**asdict(self), "counts": dict(self.counts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataDescription:
        """Read what `to_json` wrote."""
        tuples = {name: tuple(value[name]) for name in ("classes", "size", "mean", "std")}
        return cls(**{**value, **tuples, "counts": dict(value.get("counts", {}))})
