"""Kernel, stride, padding and dilation of a chain's spatial factor: one number each, or (vertical, horizontal)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index

from convsmith.errors import InvalidArgument

#: what a caller may give: one number for both directions, or two
IntOrPair = int | Sequence[int]


@dataclass(frozen=True)
class ChainGeometry:
    """The spatial settings of a chain's first factor, (vertical, horizontal) as ``nn.Conv2d`` holds them."""

    kernel_size: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    dilation: tuple[int, int] = (1, 1)

    @classmethod
    def of(
        cls, kernel_size: IntOrPair, stride: IntOrPair, padding: IntOrPair | None, dilation: IntOrPair
    ) -> ChainGeometry:
        """Check what a caller gave; padding ``None`` is ``dilation * (kernel_size // 2)``.

        Raises:
            InvalidArgument: not one or two integers, a kernel, stride or dilation below 1, a negative padding.
        """
        kernel, step, spread = (
            _pair(name, given, least=1)
            for name, given in (("kernel_size", kernel_size), ("stride", stride), ("dilation", dilation))
        )
        same = (spread[0] * (kernel[0] // 2), spread[1] * (kernel[1] // 2))
        return cls(kernel, step, same if padding is None else _pair("padding", padding, least=0), spread)

    @property
    def is_pointwise(self) -> bool:
        """Whether the factor maps every position by itself (a dilated 1x1 does)."""
        return (self.kernel_size, self.stride, self.padding) == ((1, 1), (1, 1), (0, 0))

    def output_size(self, size: Sequence[int]) -> tuple[int, int]:
        """Return the height and width after the factor."""
        sides = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        height, width = ((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides)
        return height, width

    def __str__(self) -> str:
        names = ("kernel_size", "stride", "padding")
        parts = ((name, getattr(self, name)) for name in names)
        return ", ".join(f"{name}={pair[0] if pair[0] == pair[1] else pair}" for name, pair in parts)


def _pair(name: str, given: IntOrPair, *, least: int) -> tuple[int, int]:
    try:
        numbers = [index(n) for n in given] if isinstance(given, Sequence) else [index(given)] * 2
    except TypeError:
        numbers = []
    if len(numbers) != 2 or min(numbers) < least:
        rule = "a positive integer" if least else "an integer that is not negative"
        raise InvalidArgument(f"{name} is {rule}, or a (vertical, horizontal) pair of them", given=given)
    return numbers[0], numbers[1]
