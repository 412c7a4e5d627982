"""What happens to a picture on its way into a network: one plain configuration, in timm's own words.

The configuration belongs to the network and is stored beside its weights. The transform is timm's evaluation path.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any

from PIL import Image
from torch import Tensor, nn

from convsmith.errors import InvalidArgument

INTERPOLATIONS = ("bicubic", "bilinear", "nearest", "lanczos", "box", "hamming", "random")
CROP_MODES = ("center", "squash", "border")
_LARGEST_SIDE = 65536
_CONVERTED = {1: "L", 3: "RGB", 4: "RGBA"}


@dataclass(frozen=True)
class Preprocessing:
    """Size, interpolation, crop and normalisation of a network's inputs; the fields of timm's data configuration.

    Args:
        input_size: (C, H, W) of the tensor that enters the network.
        interpolation: how PIL resizes.
        mean, std: per channel, for pixels in [0, 1].
        crop_pct: the picture is resized to the input's side divided by this, then cropped.
        crop_mode: ``"center"`` keeps the aspect ratio and crops; ``"squash"`` does not keep it; ``"border"`` pads.

    Raises:
        InvalidArgument: a value of another type or out of its range, before any picture is touched.
    """

    input_size: tuple[int, int, int] = (3, 224, 224)
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    std: tuple[float, ...] = (0.229, 0.224, 0.225)
    crop_pct: float = 0.875
    crop_mode: str = "center"

    def __post_init__(self) -> None:
        size = _numbers("input_size", self.input_size)
        if len(size) != 3 or any(s != int(s) or not 1 <= s <= _LARGEST_SIDE for s in size):
            raise InvalidArgument(
                "an input has channels, height and width", argument="input_size", given=self.input_size, hint="C, H, W"
            )
        object.__setattr__(self, "input_size", tuple(int(s) for s in size))
        for name in ("mean", "std"):
            values = _numbers(name, getattr(self, name))
            if len(values) == 1:
                values *= int(size[0])
            if len(values) != size[0] or (name == "std" and not all(v > 0 for v in values)):
                raise InvalidArgument(
                    f"one {'positive ' if name == 'std' else ''}number per channel",
                    argument=name,
                    given=getattr(self, name),
                    hint=f"the input has {int(size[0])} channels",
                )
            object.__setattr__(self, name, values)
        if not isinstance(self.crop_pct, Real) or isinstance(self.crop_pct, bool) or not 0.05 <= self.crop_pct <= 4:
            raise InvalidArgument("a share of the side from 0.05 to 4", argument="crop_pct", given=repr(self.crop_pct))
        for name, known in (("interpolation", INTERPOLATIONS), ("crop_mode", CROP_MODES)):
            if getattr(self, name) not in known:
                raise InvalidArgument(
                    "not one of the known choices",
                    argument=name,
                    given=repr(getattr(self, name)),
                    hint=f"one of {', '.join(known)}",
                )

    @property
    def channels(self) -> int:
        """Channels of the input."""
        return self.input_size[0]

    def transform(self) -> Callable[[Image.Image], Tensor]:
        """Return the evaluation path: PIL picture -> normalised float tensor [C, H, W], bit-equal to timm's.

        A picture of another kind (palette, CMYK, grey for a colour network) is converted first.
        """
        return _Evaluation(self)

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold and that timm's ``create_transform`` takes; `from_json` reads it."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: object) -> Preprocessing:
        """Read what `to_json` or timm's ``resolve_model_data_config`` wrote; refuse anything else."""
        if not isinstance(value, Mapping):
            raise InvalidArgument("a mapping is needed", argument="preprocessing", given=type(value).__name__)
        names = [f.name for f in fields(cls)]
        unknown = sorted(str(k) for k in value if k not in names)
        if unknown:
            raise InvalidArgument(
                "no such field", argument="preprocessing", given=", ".join(unknown), hint=f"known: {', '.join(names)}"
            )
        return cls(**value)

    @classmethod
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
        return cls(
            (len(transforms.mean), crop, crop),
            transforms.interpolation.value,
            tuple(transforms.mean),
            tuple(transforms.std),
            share,
        )


class _Evaluation:
    """A picture to a tensor; a class, so that it goes to worker processes."""

    def __init__(self, configuration: Preprocessing) -> None:
        from timm.data import create_transform

        self.configuration = configuration
        self.steps = create_transform(**asdict(configuration), is_training=False)

    def __call__(self, image: Image.Image) -> Tensor:
        wanted = _CONVERTED.get(self.configuration.channels)
        return self.steps(image if wanted is None or image.mode == wanted else image.convert(wanted))

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.configuration})"


def _numbers(name: str, value: object) -> tuple[float, ...]:
    given = value if isinstance(value, Sequence) and not isinstance(value, str) else None
    if given is None or not all(isinstance(v, Real) and not isinstance(v, bool) and math.isfinite(v) for v in given):
        raise InvalidArgument("a sequence of finite numbers", argument=name, given=repr(value)[:80])
    return tuple(given)
