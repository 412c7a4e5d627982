"""Mean and standard deviation of the pixels of a training split, by channel."""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.data.keyed import shuffled
from convsmith.data.source import Progress
from convsmith.data.store import MemoryStore, Store

#: images that must be decoded to look at them are sampled down to this many
SAMPLE = 2000


def mean_and_std(
    store: Store, rows: Tensor, seed: int = 0, progress: Progress | None = None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return (mean, std) over images ``rows`` and all their pixels, in float64.

    Images in memory are all counted; of images on disk at most 2000, chosen by ``seed``. A channel that never changes
    gets std 1, so that normalising it gives 0 and not infinity.
    """
    if not isinstance(store, MemoryStore) and len(rows) > SAMPLE:
        rows = rows[shuffled(rows, seed, 0x57A7)[:SAMPLE].sort().values]
    count = done = 0
    total = squares = torch.zeros(store.channels, dtype=torch.float64)
    # two passes would decode twice; in float64 the one-pass form loses nothing for values in [0, 1]
    for part in rows.split(1024 if isinstance(store, MemoryStore) else 64):
        pixels = store.pixels(part).double()
        count += pixels.numel() // store.channels
        total = total + pixels.sum((0, 2, 3))
        squares = squares + pixels.square().sum((0, 2, 3))
        done += len(part)
        if progress is not None:
            progress(done, len(rows), "mean and deviation of the training pixels")
    if count == 0:
        return (0.0,) * store.channels, (1.0,) * store.channels
    mean = total / count
    std = (squares / count - mean.square()).clamp(min=0).sqrt()
    std = torch.where(std < 1e-6, torch.ones_like(std), std)
    return tuple(mean.tolist()), tuple(std.tolist())
