"""Random numbers that are functions of a key, not of a state: the same key always gives the same number.

Every draw is a hash of integers such as (seed, epoch, image number), so a run resumed in mid-epoch, a run on two
processes and a run with prefetching threads all see the same sample order and the same augmentation.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST = np.uint64(0xBF58476D1CE4E5B9)
_SECOND = np.uint64(0x94D049BB133111EB)
_ORDER = 2  # keys the use: an order must not repeat another draw of the same key


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Scramble 64-bit words one to one (the finaliser of SplitMix64; Steele, Lea and Flood 2014)."""
    x = (x ^ (x >> np.uint64(30))) * _FIRST
    x = (x ^ (x >> np.uint64(27))) * _SECOND
    return x ^ (x >> np.uint64(31))


def hash64(*parts: ArrayLike) -> NDArray[np.uint64]:
    """Hash integers to 64-bit words [...]; the parts are broadcast against each other and their order matters."""
    word = np.zeros(1, np.uint64)
    for part in parts:
        number = np.uint64(part % 2**64) if isinstance(part, int) else np.asarray(part, np.int64).astype(np.uint64)
        word = _mix((word ^ number) + _STEP)
    return word


def shuffled(index: Tensor, *key: int) -> Tensor:
    """Return the positions 0..len(index)-1 in an order that is a function of ``key`` and of the image numbers."""
    words = hash64(_ORDER, *key, index.cpu().numpy())
    return torch.from_numpy(np.argsort(words, kind="stable").astype(np.int64))
