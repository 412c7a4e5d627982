"""One description object per data set."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from convsmith.data.preprocessing import Preprocessing
from convsmith.errors import InvalidArgument


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
        """How a picture becomes an image of this data set."""
        size = (self.channels, *self.size)
        return Preprocessing(size, self.interpolation, self.mean, self.std, self.crop_pct, self.crop_mode)

    def seen_through(self, preprocessing: Preprocessing) -> DataDescription:
        """Return the description of the same images under another preprocessing."""
        channels, height, width = preprocessing.input_size
        rest = {k: v for k, v in asdict(preprocessing).items() if k != "input_size"}
        return replace(self, channels=channels, size=(height, width), **rest)

    def with_normalisation(self, mean: Sequence[float], std: Sequence[float]) -> DataDescription:
        """Return the description with other statistics, one number per channel, checked."""
        if {len(mean), len(std)} != {self.channels}:
            rule = "normalisation needs one mean and one positive std per channel"
            raise InvalidArgument(rule, argument=f"{self.channels} channels", given=(tuple(mean), tuple(std)))
        return self.seen_through(replace(self.preprocessing, mean=tuple(mean), std=tuple(std)))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold; `from_json` reads it back."""
        return {**asdict(self), "counts": dict(self.counts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataDescription:
        """Read what `to_json` wrote."""
        tuples = {name: tuple(value[name]) for name in ("classes", "size", "mean", "std")}
        return cls(**{**value, **tuples, "counts": dict(value.get("counts", {}))})
