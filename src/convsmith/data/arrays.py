"""Images that are already in memory: as a split, and the digit domains' windows and exact area averages.

No library has the window. The average over exact areas keeps an image's mean at ratios that are not whole (20 to 8
pixels), which adaptive pooling and PIL's box filter do not; the published digit numbers rest on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convsmith.arguments import checked
from convsmith.data.pictures import Prepared
from convsmith.data.preprocessing import DataDescription
from convsmith.data.split import ImageSplit, Size
from convsmith.errors import InvalidArgument, refusing


@checked
def from_arrays(
    X: Any, y: Any = None, *, name: str = "arrays", classes: Sequence[Any] | None = None, normalised: bool = False
) -> ImageSplit:
    """Return a split of arrays.

    Args:
        X: [N, H, W] or [N, C, H, W], numpy or torch; uint8, or floats in [0, 1].
        y: [N] whole numbers from 0; None for unlabelled images (labels -1).
        name: what reports call it.
        classes: names of the classes; "0", "1", ... where not given.
        normalised: take float values as they are, whatever their range (mean 0, std 1 in the description).

    Raises:
        InvalidArgument: wrong shape or type, no images, values that are not finite or outside [0, 1], or labels that
            do not match.

    Examples:
        >>> len(from_arrays(np.random.rand(5, 8, 8), [0, 1, 0, 1, 1]))
        5
    """
    images = _images(X, normalised)
    labels, names = _labels(y, classes, len(images))
    rows, (channels, *size) = torch.arange(len(images)), images.shape[1:]
    mean, std = ((0.0,) * channels, (1.0,) * channels) if normalised else mean_and_std(images, rows)
    counts, source = {"train": len(images)}, "arrays given by the caller"
    description = DataDescription(name, names, channels, (size[0], size[1]), mean, std, counts, source)
    return ImageSplit(Prepared(images), labels, rows, description)


def mean_and_std(images: Tensor, rows: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) by channel over images ``rows`` of [N, C, H, W] and all their pixels, in float64.

    A channel that never changes gets std 1, so that normalising it gives 0 and not infinity.
    """
    total = squares = torch.zeros(images.shape[1], dtype=torch.float64)
    # two passes would read twice; in float64 the one-pass form loses nothing for values in [0, 1]
    for part in rows.split(1024):
        pixels = Prepared(images).pixels(part).double()
        total, squares = total + pixels.sum((0, 2, 3)), squares + pixels.square().sum((0, 2, 3))
    count = max(1, len(rows) * images[0, 0].numel())
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    return tuple(mean.tolist()), tuple(torch.where(std < 1e-6, torch.ones_like(std), std).tolist())


def _images(X: Any, normalised: bool) -> Tensor:
    images = _tensor(X, "X")
    images = images[:, None] if images.ndim == 3 else images
    given, hint = f"{images.dtype} {tuple(images.shape)}", None
    if images.ndim != 4 or min(images.shape) == 0:
        rule = "images are [N, H, W] or [N, C, H, W], none of them 0"
    elif images.shape[1] > 4 and images.shape[3] in (1, 3, 4):
        rule = "channels come before height and width"
        hint = "X.transpose(0, 3, 1, 2) for an array, X.permute(0, 3, 1, 2) for a tensor"
    elif images.dtype == torch.uint8 and not normalised:
        return images.contiguous()
    elif not images.is_floating_point():
        rule, hint = "pixels are uint8 or floats", "X.astype('uint8')"
    else:
        images = images.float().contiguous()
        low, high = images.aminmax()
        if bool(images.isfinite().all()) and (normalised or (low >= 0 and high <= 1)):
            return images
        rule, given = "float pixels are finite and lie in [0, 1]", f"values from {float(low):.4g} to {float(high):.4g}"
        hint = "divide by the largest possible value, or pass normalised=True to take finite ones as they are"
    raise InvalidArgument(rule, argument="X", given=given, hint=hint)


def _labels(y: Any, classes: Sequence[Any] | None, count: int) -> tuple[Tensor, tuple[str, ...]]:
    names = None if classes is None else tuple(str(c) for c in classes)
    if y is None:
        return torch.full((count,), -1, dtype=torch.int64), names or ()
    labels = _tensor(y, "y")
    given = f"{labels.dtype} {tuple(labels.shape)}"
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InvalidArgument("one whole number per image", argument=f"y [{count}]", given=given)
    labels = labels.long()
    low, top = int(labels.min()), int(labels.max())
    if low < 0 or top >= (len(names) if names is not None else 10 * max(count, 10_000)):
        rule = f"labels run from 0 to {len(names) - 1}" if names else "labels run from 0 and count classes"
        raise InvalidArgument(rule, argument="y", given=f"values from {low} to {top}")
    return labels, names if names is not None else tuple(str(n) for n in range(top + 1))


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    with refusing("an array of numbers", TypeError, ValueError, argument=what):
        return torch.from_numpy(np.ascontiguousarray(np.asarray(value)))


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

    For MNIST, whose 28 x 28 images hold a 20 x 20 box placed by centre of mass, ``side=20`` recovers the box. An
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
