"""Where pixels come from: a tensor in memory at its final size, or pictures decoded when they are asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import replace

import torch
from torch import Tensor

from convsmith.data.pictures import Arrays, Pictures
from convsmith.data.preprocessing import Preprocessing
from convsmith.errors import RunFailed

Size = tuple[int, int]


class Store(ABC):
    """All images of a data set; ``pictures`` is what random transforms start from."""

    pictures: Pictures

    def __len__(self) -> int:
        return len(self.pictures)

    @abstractmethod
    def pixels(self, positions: Tensor) -> Tensor:
        """Return [B, C, H, W] float32, in [0, 1] unless the images came already normalised."""


class MemoryStore(Store):
    """Images in one tensor [N, C, H, W]: uint8 (divided by 255 on the way out) or float32."""

    def __init__(self, images: Tensor) -> None:
        self.images, self.pictures = images, Arrays(images)

    def pixels(self, positions: Tensor) -> Tensor:
        """See `Store.pixels`."""
        chosen = self.images[positions]
        return chosen.float() / 255 if chosen.dtype == torch.uint8 else chosen


class PictureStore(Store):
    """Pictures that the geometry of a `Preprocessing` brings to one size; ``exact``: they must have that size."""

    def __init__(self, pictures: Pictures, preprocessing: Preprocessing, *, exact: bool = False) -> None:
        self.pictures, self.exact = pictures, exact
        count = preprocessing.channels
        # a mean of 0 and a std of 1 change no bit; the split normalises
        self.preprocessing = replace(preprocessing, mean=(0.0,) * count, std=(1.0,) * count)
        self.transform = self.preprocessing.transform()

    def pixels(self, positions: Tensor) -> Tensor:
        """See `Store.pixels`."""
        found = [self._one(int(position)) for position in positions]
        return torch.stack(found) if found else torch.zeros(0, *self.preprocessing.input_size)

    def _one(self, position: int) -> Tensor:
        image = self.pictures.picture(position, self.preprocessing.channels)
        wanted = self.preprocessing.input_size[1:]
        size = tuple(image.shape[1:]) if isinstance(image, Tensor) else image.size[::-1]
        if self.exact and size != wanted:
            raise RunFailed(
                f"all pictures must be {wanted[0]} x {wanted[1]}",
                given=f"{self.pictures.name(position)}, {size[0]} x {size[1]}",
                hint="pass size= to resize them",
            )
        return self.transform.apply(image)
