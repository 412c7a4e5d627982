"""Batches without end from a loader of known length, from any position on."""

from __future__ import annotations

import itertools
from collections.abc import Generator
from typing import Any

from convsmith.errors import RunFailed


def endless(loader: Any, length: int, start: int = 0) -> Generator[Any, None, None]:
    """Yield batch ``n`` for n = start, start + 1, ...: it is batch ``n % length`` of epoch ``n // length``.

    Raises:
        RunFailed: an epoch has another number of batches than ``length``.
    """
    epoch, skipped = divmod(start, length)
    while True:
        got = 0
        source = loader.epoch(epoch, skipped) if hasattr(loader, "epoch") else itertools.islice(loader, skipped, None)
        for batch in source:
            got += 1
            yield batch
        if got != length - skipped:
            rule = "the loader gave another number of batches than its length"
            raise RunFailed(rule, argument=f"{length - skipped} batches of epoch {epoch}", given=got)
        epoch, skipped = epoch + 1, 0
