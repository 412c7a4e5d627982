"""Bring pixels to one size and one number of channels, deterministically.

Along an axis that shrinks, a pixel of the result is the exact area average of the pixels it covers; along an axis
that grows, it is the linear interpolation at its centre. Both are one matrix product per axis.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from convsmith.errors import InvalidArgument

Size = tuple[int, int]
#: weights of red, green and blue in a grey value (ITU-R BT.601)
LUMA = (0.299, 0.587, 0.114)


@lru_cache(maxsize=512)
def _axis(before: int, after: int) -> Tensor:
    edges = torch.arange(after + 1, dtype=torch.float64) * (before / after)
    cells = torch.arange(before, dtype=torch.float64)
    if after <= before:
        covered = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
        weights = covered.clamp(min=0)
    else:
        centres = ((edges[1:] + edges[:-1]) / 2 - 0.5).clamp(0, before - 1)
        weights = (1 - (centres[:, None] - cells).abs()).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


def resize(images: Tensor, size: Size) -> Tensor:
    """Resize float ``images`` [..., H, W] to [..., size[0], size[1]]; the mean of an image that shrinks is kept."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    rows, columns = _axis(images.shape[-2], size[0]), _axis(images.shape[-1], size[1])
    return rows @ images @ columns.T


def fit(images: Tensor, size: Size) -> Tensor:
    """Resize float ``images`` [..., H, W] so that they just cover ``size`` without distortion, and cut the centre."""
    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    covering = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    images = resize(images, covering)
    top, left = (covering[0] - size[0]) // 2, (covering[1] - size[1]) // 2
    return images[..., top : top + size[0], left : left + size[1]]


def to_channels(images: Tensor, channels: int) -> Tensor:
    """Convert float ``images`` [..., C, H, W] to 1 (luma) or 3 (repeat) channels; an alpha channel is dropped."""
    have = images.shape[-3]
    if have == channels:
        return images
    if have in (2, 4):
        return to_channels(images[..., : have - 1, :, :], channels)
    if (have, channels) == (1, 3):
        return images.expand(*images.shape[:-3], 3, *images.shape[-2:])
    if (have, channels) == (3, 1):
        return (images * images.new_tensor(LUMA)[:, None, None]).sum(-3, keepdim=True)
    raise InvalidArgument("only 1 and 3 channels convert into each other", argument=f"channels={channels}", given=have)


def ink_window(images: Tensor, side: int) -> Tensor:
    """Cut a square window from each image [N, C, H, W], centred on the bounding box of its non-zero pixels.

    For MNIST, whose 28 x 28 pictures hold a 20 x 20 box placed by centre of mass, ``side=20`` recovers the box. An
    image without a black border is cut at its centre; the window never leaves the image.
    """
    height, width = images.shape[-2:]
    if not 1 <= side <= min(height, width):
        raise InvalidArgument(f"the window must fit in {height} x {width} pixels", argument="crop", given=side)
    rows = _window(images.amax((1, 3)) > 0, side)
    columns = _window(images.amax((1, 2)) > 0, side)
    number = torch.arange(len(images))[:, None, None, None]
    channel = torch.arange(images.shape[1])[None, :, None, None]
    return images[number, channel, rows[:, None, :, None], columns[:, None, None, :]]


def _window(inked: Tensor, side: int) -> Tensor:
    """Positions [N, side] of the window along one axis, from inked [N, L]."""
    length = inked.shape[1]
    first = inked.int().argmax(1)
    last = length - 1 - inked.flip(1).int().argmax(1)
    empty = ~inked.any(1)
    first, last = first.masked_fill(empty, 0), last.masked_fill(empty, length - 1)
    start = ((first + last + 1 - side) // 2).clamp(0, length - side)
    return start[:, None] + torch.arange(side)


def checked_size(size: int | Size | None) -> Size | None:
    """Return ``size`` as (height, width), or raise `InvalidArgument`."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else tuple(size)
    if len(pair) != 2 or any(not isinstance(n, int) or n < 1 for n in pair):
        raise InvalidArgument("a size is one positive whole number, or height and width", argument="size", given=size)
    return (pair[0], pair[1])
