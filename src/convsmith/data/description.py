"""One description object per data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True)
class DataDescription:
    """What a model, a report and a run folder need to know about a data set.

    ``size`` is (height, width) in pixels, ``mean`` and ``std`` are per channel for pixels in [0, 1], ``counts`` the
    number of images by split, ``source`` one line on where the images come from.
    """

    name: str
    classes: tuple[str, ...]
    channels: int
    size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    counts: Mapping[str, int] = field(default_factory=dict)
    source: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary that JSON can hold; `from_json` reads it back."""
        return {**asdict(self), "counts": dict(self.counts)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> DataDescription:
        """Read what `to_json` wrote."""
        return cls(
            name=value["name"],
            classes=tuple(value["classes"]),
            channels=int(value["channels"]),
            size=(int(value["size"][0]), int(value["size"][1])),
            mean=tuple(value["mean"]),
            std=tuple(value["std"]),
            counts=dict(value.get("counts", {})),
            source=value.get("source", ""),
        )
