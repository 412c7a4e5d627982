"""Large results of inference in memory that is used again as soon as nobody holds it any more.

The C library gives large freed blocks back to the system, and every fresh page of the next one costs a fault: writing
a new tensor of 6 MB was measured at 1.6 ms, twenty times the time of writing one whose pages are there. A buffer is
handed out again only when no tensor, view, array or storage handle of it is left, so callers see ordinary tensors.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import torch
from torch import Tensor

#: at most this many bytes are kept for later calls (in use or free), in the whole process
LIMIT_BYTES = 128 << 20
#: smaller tensors come from the allocator as usual
SMALLEST_BYTES = 1 << 19

_STORAGES: list[torch.UntypedStorage] = []  # the one used last stands last
_LOCK = threading.Lock()
_COUNTS_USERS = hasattr(torch._C, "_storage_Use_Count")


def empty(shape: Sequence[int], like: Tensor, memory_format: torch.memory_format = torch.contiguous_format) -> Tensor:
    """Return an uninitialised tensor of that shape with the dtype and device of ``like``.

    On a CPU it may lie in memory that an earlier result has left; elsewhere it is ``torch.empty``.
    """
    fresh = torch.empty(shape, dtype=like.dtype, device="meta", memory_format=memory_format)
    size = fresh.numel() * fresh.element_size()
    fitting = _COUNTS_USERS and like.device.type == "cpu" and SMALLEST_BYTES <= size <= LIMIT_BYTES
    if fitting and _LOCK.acquire(blocking=False):  # a fork may have copied a lock that nobody will open
        try:
            storage = _take(size)
        finally:
            _LOCK.release()
        if storage is not None:
            return torch.empty(0, dtype=like.dtype).set_(storage, 0, fresh.shape, fresh.stride())
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)


def release() -> None:
    """Give all kept memory back (what is still in use goes with its last tensor)."""
    with _LOCK:
        _STORAGES.clear()


def kept_bytes() -> int:
    """Return how much memory is kept, in use or free."""
    return sum(storage.nbytes() for storage in _STORAGES)


def _take(size: int) -> torch.UntypedStorage | None:
    """Return a storage of exactly ``size`` bytes that nobody uses, made if need be; ``None``: no room."""
    free = [place for place in range(len(_STORAGES)) if _unused(place)]
    for place in reversed(free):
        if _STORAGES[place].nbytes() == size and not _STORAGES[place].is_shared():
            _STORAGES.append(_STORAGES.pop(place))
            return _STORAGES[-1]
    excess = kept_bytes() + size - LIMIT_BYTES
    dropped = []
    for place in free:  # those used longest ago first
        if excess <= 0:
            break
        excess -= _STORAGES[place].nbytes()
        dropped.append(place)
    for place in reversed(dropped):
        del _STORAGES[place]
    if excess > 0:
        return None
    _STORAGES.append(torch.UntypedStorage(size))
    return _STORAGES[-1]


def _unused(place: int) -> bool:
    """Whether the list holds the only handle: no tensor has the memory, and no Python name the storage object."""
    alone = sys.getrefcount(_STORAGES[place]) <= 2  # the list's reference and the call's own
    return alone and torch._C._storage_Use_Count(_STORAGES[place]._cdata) == 1
