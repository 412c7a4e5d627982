"""Digit domains in memory: windows around the ink, exact area averages.

No library here has the window. The average over exact areas keeps an image's mean at ratios that are not whole
(20 to 8 pixels), which adaptive pooling and PIL's box filter do not; the published digit numbers rest on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.errors import InvalidArgument

Size = tuple[int, int]


def prepared(images: Tensor, size: Size | None, channels: int | None, crop: int | None) -> Tensor:
    """Return images [N, C, H, W] (uint8 or float32 in [0, 1]) cut, resized and converted once and for all."""
    from torchvision.transforms.functional import rgb_to_grayscale

    if crop is not None:
        images = ink_window(images, crop)
    wanted = size or (images.shape[2], images.shape[3])
    if wanted == tuple(images.shape[2:]) and channels in (None, images.shape[1]):
        return images
    parts = []
    for part in images.split(4096):
        scaled = part.float() / 255 if part.dtype == torch.uint8 else part
        if channels is not None and channels != scaled.shape[1]:
            scaled = scaled[:, :1].expand(-1, 3, -1, -1) if channels == 3 else rgb_to_grayscale(scaled[:, :3])
        parts.append(area_average(scaled, wanted).contiguous())
    return torch.cat(parts).clamp_(0, 1)


def area_average(images: Tensor, size: Size) -> Tensor:
    """Bring float ``images`` [..., H, W] to cover ``size`` undistorted, then cut the centre.

    Along an axis that shrinks a pixel is the average of the area it covers; along one that grows, linear interpolation.
    """
    from torchvision.transforms.functional import center_crop

    height, width = images.shape[-2:]
    scale = max(size[0] / height, size[1] / width)
    covering = (max(size[0], round(height * scale)), max(size[1], round(width * scale)))
    if covering != (height, width):
        images = _axis(height, covering[0]) @ images @ _axis(width, covering[1]).T
    return center_crop(images, list(size))


def _axis(before: int, after: int) -> Tensor:
    edges = torch.arange(after + 1, dtype=torch.float64) * (before / after)
    cells = torch.arange(before, dtype=torch.float64)
    if after <= before:
        weights = (torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)).clamp(min=0)
    else:
        centres = ((edges[1:] + edges[:-1]) / 2 - 0.5).clamp(0, before - 1)
        weights = (1 - (centres[:, None] - cells).abs()).clamp(min=0)
    return (weights / weights.sum(1, keepdim=True)).float()


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
    first, last = inked.int().argmax(1), length - 1 - inked.flip(1).int().argmax(1)
    empty = ~inked.any(1)
    first, last = first.masked_fill(empty, 0), last.masked_fill(empty, length - 1)
    start = ((first + last + 1 - side) // 2).clamp(0, length - side)
    return start[:, None] + torch.arange(side)
