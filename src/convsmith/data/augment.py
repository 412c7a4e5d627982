"""Random changes of training images, each a pure function of pixels and of numbers drawn from a key.

``AUGMENTATIONS`` maps a name to ``f(images [B, C, H, W] in [0, 1], draws [B, k] in [0, 1), size) -> [B, C, *size]``.
Its traits say how many numbers an image needs (``draws``) and whether it must see the picture at its original size
(``original``). No global random state is touched: equal keys give equal images, whatever the batch around them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from convsmith.data.keyed import uniform
from convsmith.data.resize import Size, fit, resize
from convsmith.registry import Registry

AUGMENTATIONS: Registry[Callable[[Tensor, Tensor, Size], Tensor]] = Registry("augmentation", "convsmith.data")


def draw(name: str, seed: int, epoch: int, index: Tensor) -> Tensor:
    """Return the numbers [B, k] that augmentation ``name`` uses for these image numbers at this epoch."""
    return uniform(seed, epoch, index, AUGMENTATIONS.entry(name).traits["draws"])


@AUGMENTATIONS.register("none", draws=0, original=False)
def none(images: Tensor, _draws: Tensor, _size: Size) -> Tensor:
    """No change."""
    return images


@AUGMENTATIONS.register("digits", draws=4, original=False)
def digits(images: Tensor, draws: Tensor, _size: Size) -> Tensor:
    """Shift by up to 6 % of the side, rotate by up to 10 degrees, scale by 0.9 to 1.1; black outside."""
    signed = (2 * draws - 1).float()
    shift_x, shift_y = 0.12 * signed[:, 0], 0.12 * signed[:, 1]  # in grid units, where the side is 2
    angle = math.radians(10) * signed[:, 2]
    scale = 1 / (1 + 0.1 * signed[:, 3])
    height, width = images.shape[-2:]
    y = ((2 * torch.arange(height) + 1) / height - 1)[None, :, None]
    x = ((2 * torch.arange(width) + 1) / width - 1)[None, None, :]
    cosine, sine = (torch.cos(angle) * scale)[:, None, None], (torch.sin(angle) * scale)[:, None, None]
    # written out, not as a matrix product: a sample must not depend on the batch it is in, to the last bit
    grid = torch.stack(
        [
            cosine * x - sine * (height / width) * y + shift_x[:, None, None],
            sine * (width / height) * x + cosine * y + shift_y[:, None, None],
        ],
        dim=-1,
    )
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


@AUGMENTATIONS.register("flip-crop", draws=3, original=False)
def flip_crop(images: Tensor, draws: Tensor, _size: Size) -> Tensor:
    """Pad by 4 black pixels, cut back to the size at a random place, mirror half of the images (the CIFAR recipe)."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (4, 4, 4, 4))
    top, left = (draws[:, 0] * 9).long(), (draws[:, 1] * 9).long()
    rows = top[:, None] + torch.arange(height)
    columns = left[:, None] + torch.arange(width)
    columns = torch.where((draws[:, 2] < 0.5)[:, None], columns.flip(1), columns)
    number = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return padded[number, channel, rows[:, None, :, None], columns[:, None, None, :]]


_TRIES = 10


@AUGMENTATIONS.register("imagenet", draws=2 * _TRIES + 3, original=True)
def imagenet(images: Tensor, draws: Tensor, size: Size) -> Tensor:
    """Random resized crop (8 to 100 % of the area, aspect 3:4 to 4:3) and mirror (the ImageNet recipe)."""
    results = []
    for image, drawn in zip(images, draws.tolist(), strict=True):
        box = crop_box((image.shape[-2], image.shape[-1]), drawn)
        if box is None:
            result = fit(image, size)
        else:
            top, left, height, width = box
            result = resize(image[:, top : top + height, left : left + width], size)
        results.append(result.flip(-1) if drawn[-1] < 0.5 else result)
    return torch.stack(results) if results else images.new_zeros(0, images.shape[1], *size)


def crop_box(size: Size, drawn: list[float]) -> tuple[int, int, int, int] | None:
    """Return (top, left, height, width) of a random crop inside ``size``, or None if ten tries did not fit."""
    height, width = size
    for n in range(_TRIES):
        area = height * width * (0.08 + 0.92 * drawn[2 * n])
        ratio = math.exp(math.log(3 / 4) + (math.log(4 / 3) - math.log(3 / 4)) * drawn[2 * n + 1])
        h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 1 <= h <= height and 1 <= w <= width:
            return int(drawn[-3] * (height - h + 1)), int(drawn[-2] * (width - w + 1)), h, w
    return None
