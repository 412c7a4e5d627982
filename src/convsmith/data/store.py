"""Where pixels come from: a tensor in memory, or pictures decoded when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from convsmith.data.augment import AUGMENTATIONS
from convsmith.data.resize import Size, fit, ink_window, to_channels
from convsmith.errors import RunFailed


class Store(ABC):
    """All images of a data set, at one size and one number of channels."""

    size: Size
    channels: int

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def pixels(self, positions: Tensor) -> Tensor:
        """Return [B, C, H, W] float32, in [0, 1] unless the images came already normalised."""

    @abstractmethod
    def augmented(self, positions: Tensor, name: str, draws: Tensor) -> Tensor:
        """Return [B, C, H, W] float32 changed by the augmentation ``name`` with numbers ``draws`` [B, k]."""


class MemoryStore(Store):
    """Images in one tensor [N, C, H, W]: uint8 (divided by 255 on the way out) or float32."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.size = (images.shape[2], images.shape[3])
        self.channels = images.shape[1]

    def __len__(self) -> int:
        return len(self.images)

    def pixels(self, positions: Tensor) -> Tensor:
        """See `Store.pixels`."""
        chosen = self.images[positions]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen

    def augmented(self, positions: Tensor, name: str, draws: Tensor) -> Tensor:
        """See `Store.augmented`."""
        return AUGMENTATIONS[name](self.pixels(positions), draws, self.size)


class DecodingStore(Store):
    """Images of any size that ``decode(position)`` returns as uint8 [C, h, w]; it must be safe to call from threads."""

    def __init__(
        self,
        decode: Callable[[int], Tensor],
        names: Sequence[str],
        size: Size,
        channels: int,
        *,
        resizing: bool,
        converting: bool,
    ) -> None:
        self.decode, self.names, self.size, self.channels = decode, names, size, channels
        self.resizing, self.converting = resizing, converting

    def __len__(self) -> int:
        return len(self.names)

    def _picture(self, position: int) -> Tensor:
        """Return one picture [C, h, w]; what the caller did not ask to convert must already fit."""
        picture = self.decode(position)
        if len(picture) != self.channels and not self.converting:
            raise RunFailed(
                f"all pictures must have {self.channels} channels",
                given=f"{self.names[position]} with {len(picture)}",
                hint="pass channels=1 or channels=3 to convert them",
            )
        if tuple(picture.shape[1:]) != self.size and not self.resizing:
            raise RunFailed(
                f"all pictures must be {self.size[0]} x {self.size[1]}",
                given=f"{self.names[position]}, {picture.shape[1]} x {picture.shape[2]}",
                hint="pass size= to resize them",
            )
        return to_channels(picture.float() / 255, self.channels)

    def pixels(self, positions: Tensor) -> Tensor:
        """See `Store.pixels`."""
        return self._stack([fit(self._picture(int(p)), self.size) for p in positions])

    def augmented(self, positions: Tensor, name: str, draws: Tensor) -> Tensor:
        """See `Store.augmented`."""
        entry = AUGMENTATIONS.entry(name)
        if not entry.traits["original"]:
            return entry.value(self.pixels(positions), draws, self.size)
        return self._stack(
            [
                entry.value(self._picture(int(p))[None], draws[n : n + 1], self.size)[0]
                for n, p in enumerate(positions.tolist())
            ]
        )

    def _stack(self, images: Sequence[Tensor]) -> Tensor:
        return torch.stack(list(images)) if images else torch.zeros(0, self.channels, *self.size)


def prepared(images: Tensor, size: Size | None, channels: int | None, crop: int | None) -> MemoryStore:
    """Return images [N, C, H, W] (uint8 or float32 in [0, 1]) cut, resized and converted once and for all."""
    if crop is not None:
        images = ink_window(images, crop)
    wanted = size or (images.shape[2], images.shape[3])
    if wanted == tuple(images.shape[2:]) and (channels is None or channels == images.shape[1]):
        return MemoryStore(images)
    parts = []
    for part in images.split(4096):
        scaled = part.float() / 255 if part.dtype == torch.uint8 else part
        parts.append(fit(scaled if channels is None else to_channels(scaled, channels), wanted).contiguous())
    return MemoryStore(torch.cat(parts).clamp_(0, 1))
