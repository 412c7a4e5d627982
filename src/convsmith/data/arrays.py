"""Images that are already in memory, as a split."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convsmith.data.description import DataDescription
from convsmith.data.split import ImageSplit
from convsmith.data.statistics import mean_and_std
from convsmith.data.store import MemoryStore
from convsmith.errors import InvalidArgument


def from_arrays(
    X: Any,
    y: Any = None,
    *,
    name: str = "arrays",
    classes: Sequence[str] | None = None,
    normalised: bool = False,
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
    """
    images = _images(X, normalised)
    labels, names = _labels(y, classes, len(images))
    store = MemoryStore(images)
    rows = torch.arange(len(images))
    mean, std = ((0.0,) * store.channels, (1.0,) * store.channels) if normalised else mean_and_std(store, rows)
    description = DataDescription(
        name, names, store.channels, store.size, mean, std, {"train": len(images)}, "arrays given by the caller"
    )
    return ImageSplit(store, rows, labels, rows, description)


def _images(X: Any, normalised: bool) -> Tensor:
    images = _tensor(X, "X")
    if images.ndim == 3:
        images = images[:, None]
    if images.ndim != 4 or min(images.shape) == 0:
        raise InvalidArgument(
            "images are [N, H, W] or [N, C, H, W], none of them 0", argument="X", given=f"shape {tuple(images.shape)}"
        )
    if images.shape[1] > 4 and images.shape[3] in (1, 3, 4):
        raise InvalidArgument(
            "channels come before height and width",
            argument="X [N, C, H, W]",
            given=f"shape {tuple(images.shape)}",
            hint="X.transpose(0, 3, 1, 2) for an array, X.permute(0, 3, 1, 2) for a tensor",
        )
    if images.dtype == torch.uint8 and not normalised:
        return images.contiguous()
    if not images.is_floating_point():
        raise InvalidArgument("pixels are uint8 or floats", argument="X", given=images.dtype, hint="X.astype('uint8')")
    images = images.float().contiguous()
    if not bool(images.isfinite().all()):
        raise InvalidArgument("pixels are finite", argument="X", given="NaN or infinity")
    low, high = float(images.min()), float(images.max())
    if not normalised and (low < 0 or high > 1):
        raise InvalidArgument(
            "float pixels lie in [0, 1]",
            argument="X",
            given=f"values from {low:.4g} to {high:.4g}",
            hint="divide by the largest possible value, or pass normalised=True to take them as they are",
        )
    return images


def _labels(y: Any, classes: Sequence[str] | None, count: int) -> tuple[Tensor, tuple[str, ...]]:
    names = None if classes is None else tuple(str(c) for c in classes)
    if y is None:
        return torch.full((count,), -1, dtype=torch.int64), names or ()
    labels = _tensor(y, "y")
    if labels.shape != (count,) or labels.is_floating_point() or labels.dtype == torch.bool:
        raise InvalidArgument(
            "one whole number per image",
            argument=f"y [{count}]",
            given=f"{labels.dtype} {tuple(labels.shape)}",
        )
    labels = labels.long()
    top = int(labels.max())
    names = names if names is not None else tuple(str(n) for n in range(top + 1))
    if int(labels.min()) < 0 or top >= len(names):
        raise InvalidArgument(
            f"labels run from 0 to {len(names) - 1}", argument="y", given=f"values from {int(labels.min())} to {top}"
        )
    return labels, names


def _tensor(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().cpu()
    try:
        return torch.from_numpy(np.ascontiguousarray(np.asarray(value)))
    except (TypeError, ValueError) as error:
        raise InvalidArgument("an array of numbers", argument=what, given=f"{type(value).__name__}: {error}") from error
