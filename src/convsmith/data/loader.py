"""Batches in an order that is a function of (seed, epoch): start anywhere, on any number of processes, see the same."""

from __future__ import annotations

import inspect
import itertools
import math
import signal
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from convsmith.arguments import integer, typed
from convsmith.data.augment import kept_random_states
from convsmith.data.batch import Batch, DomainBatch
from convsmith.data.keyed import hash64, shuffled
from convsmith.data.split import Split
from convsmith.errors import ConvsmithError, InvalidArgument, RunFailed
from convsmith.registry import check_settings

#: (epoch, batch number, positions in the split)
Share = tuple[int, int, Sequence[int]]


@dataclass(frozen=True, eq=False)
class Loader:
    """Batches of ``batch_size`` images per process, prepared by torch's DataLoader.

    Args:
        split: where the images come from.
        batch_size: images per batch and process. A global batch has ``batch_size * world`` images; process ``rank``
            gets its share, so two processes see together exactly what one process sees with twice the batch size.
        seed: key of the order and of the augmentation.
        shuffle: a new order every epoch; else the order of the split.
        augment: apply the split's augmentation (which is "none" unless it was loaded with another).
        rank: number of this process.
        world: number of processes.
        drop_last: leave the last, incomplete global batch out.
        fill_last: complete it with the first images of the epoch's order, so that every image is seen; a split smaller
            than one global batch is only filled until all processes have equally many.
        workers: processes that prepare batches ahead; changes the speed only, never what is seen.
        stream: a further key; two loaders with unequal streams have independent orders.
        mixup: settings of `timm.data.Mixup` (``mixup_alpha``, ``cutmix_alpha``, ``prob``, ``switch_prob``, ``mode``,
            ``label_smoothing``): batches then carry ``targets``. The pairs are those of the global batch.
    """

    split: Split
    batch_size: int
    seed: int = 0
    shuffle: bool = False
    augment: bool = False
    rank: int = 0
    world: int = 1
    drop_last: bool = False
    fill_last: bool = False
    workers: int = 0
    stream: int = 0
    mixup: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        typed(self)
        integer("batch_size", self.batch_size, least=1)
        integer("workers", self.workers, least=0)
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise InvalidArgument("0 <= rank < world", argument="rank, world", given=(self.rank, self.world))
        if self.drop_last and self.fill_last:
            raise InvalidArgument("one of them", argument="drop_last, fill_last", given="both")
        rest = (len(self.split) + self.filled) % self.global_batch_size
        if 0 < rest < self._fewest and not self.drop_last:
            rule = f"the last global batch has {rest} images, too few for {self.world} processes"
            given, hint = f"{len(self.split)} images", "fill_last=True, drop_last=True, or another batch size"
            raise InvalidArgument(rule, argument=f"batches of {self.batch_size} x {self.world}", given=given, hint=hint)
        odd = self.batch_size % 2 or (rest % 2 and not self.drop_last)
        if self.mixup is not None:
            self._check_mixup(odd=bool(odd))
        if len(self) == 0:
            rule, hint = "there is no batch to give", "a smaller batch size, or a split that is not empty"
            argument = f"batches of {self.batch_size} x {self.world}, drop_last={self.drop_last}"
            raise InvalidArgument(rule, argument=argument, given=f"{len(self.split)} images", hint=hint)

    def _check_mixup(self, *, odd: bool) -> None:
        from timm.data import Mixup

        known = set(inspect.signature(Mixup).parameters) - {"num_classes"}
        check_settings("mixup", self.mixup or {}, known, argument="mixup")
        if odd:
            raise InvalidArgument("images are mixed in pairs", argument="mixup", given="a batch of an odd number")
        if bool((self.split.labels < 0).any()):
            raise InvalidArgument("images are mixed with their labels", argument="mixup", given="images without label")

    @property
    def global_batch_size(self) -> int:
        """Images per step over all processes."""
        return self.batch_size * self.world

    @property
    def filled(self) -> int:
        """Images that an epoch shows a second time, to complete its last batch."""
        if not self.fill_last:
            return 0
        full = len(self.split) >= self.global_batch_size
        return -len(self.split) % (self.global_batch_size if full else self._fewest)

    @property
    def _fewest(self) -> int:
        """Images of the smallest global batch of which every process has a share: pairs go to one process."""
        return self.world * (1 if self.mixup is None else 2)

    def __len__(self) -> int:
        count = (len(self.split) + self.filled) / self.global_batch_size
        return math.floor(count) if self.drop_last else math.ceil(count)

    def __iter__(self) -> Iterator[Batch]:
        return self.epoch(0)

    def sharded(self, rank: int, world: int) -> Loader:
        """Return this loader as process ``rank`` of ``world`` uses it."""
        return replace(self, rank=rank, world=world)

    def order(self, epoch: int) -> Tensor:
        """Return positions [N + filled] in the split, in the order of this epoch, for all processes."""
        count = len(self.split)
        found = shuffled(self.split.index, self.seed, self.stream, epoch) if self.shuffle else torch.arange(count)
        return found[torch.arange(count + self.filled) % count] if self.filled else found

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield this process's batches of one epoch, from batch ``start`` on."""
        _check(epoch, start, len(self))
        return self._batches(epoch, start)

    @cached_property
    def _prepared(self) -> DataLoader[Any]:
        """The DataLoader of torch over shares of a global batch; its processes live as long as this loader."""
        shares: list[Share] = []  # those of the epoch that runs, empty between epochs
        return DataLoader(
            _Fetched(self),
            batch_size=None,
            sampler=shares,  # type: ignore[arg-type]  # a list that changes between epochs
            num_workers=self.workers,
            persistent_workers=self.workers > 0,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # the global one is not touched
            worker_init_fn=_only_work if self.workers else None,
        )

    def _batches(self, epoch: int, start: int) -> Iterator[Batch]:
        order = self.order(epoch)  # a resumed epoch skips here, before any image is read
        prepared = replace(self)._prepared if self._prepared.sampler else self._prepared
        shares: Any = prepared.sampler
        shares[:] = [(epoch, n, self._share(order, n).tolist()) for n in range(start, len(self))]
        try:
            for found in prepared:
                if isinstance(found, ConvsmithError):
                    raise found
                yield found
        except RuntimeError as error:
            if isinstance(error, ConvsmithError) or "DataLoader worker" not in str(error):
                raise
            hint = "continue with --resume, with fewer workers if memory ran out"
            raise RunFailed("a process that prepares batches ended", given=str(error), hint=hint) from error
        finally:
            shares.clear()

    def _share(self, order: Tensor, number: int) -> Tensor:
        whole = order[number * self.global_batch_size : (number + 1) * self.global_batch_size]
        if self.mixup is None:
            return whole[self.rank * len(whole) // self.world : (self.rank + 1) * len(whole) // self.world]
        # timm mixes image i with image n-1-i: both go to the same process
        half = len(whole) // 2
        low, high = self.rank * half // self.world, (self.rank + 1) * half // self.world
        return torch.cat([whole[low:high], whole[len(whole) - high : len(whole) - low]])


class _Fetched(Dataset[Any]):
    """What a worker does: from a share to a batch; an error of ours travels as a value and keeps its form."""

    def __init__(self, loader: Loader) -> None:
        self.split, self.mixup = loader.split, None
        self.seed = loader.seed + (loader.stream << 32)
        self.augment = loader.augment
        if loader.mixup is not None:
            from timm.data import Mixup

            self.mixup = Mixup(**loader.mixup, num_classes=len(loader.split.classes))

    def __getitem__(self, share: Share) -> Batch | ConvsmithError:
        epoch, number, positions = share
        try:
            batch = self.split.fetch(positions, key=(self.seed, epoch) if self.augment else None)
        except ConvsmithError as error:
            return error
        if self.mixup is None:
            return batch
        with kept_random_states():
            np.random.seed(int(hash64(3, self.seed, epoch, number)[0]) % 2**32)  # noqa: NPY002  (timm draws from it)
            images, targets = self.mixup(batch.images, batch.labels)
        return replace(batch, images=images, targets=targets)


def _check(epoch: int, start: int, length: int) -> None:
    if epoch < 0 or not 0 <= start <= length:
        rule = f"an epoch counts from 0 and has {length} batches"
        raise InvalidArgument(rule, argument="epoch, start", given=(epoch, start))


def _only_work(_number: int) -> None:
    """Leave Ctrl-C to the main process, which decides when a run ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class DomainLoader:
    """Batches of a labelled source beside batches of a target, whose labels come out as -1.

    An epoch has as many steps as the longer of the two; the other goes on from its own epoch to its next. Step ``i`` of
    epoch ``e`` is global step ``t = e * len(self) + i`` and shows batch ``t % n`` of epoch ``t // n`` of a loader with
    ``n`` batches. The orders of the two are independent, also under one seed.
    """

    def __init__(self, source: Loader, target: Loader) -> None:
        self.source = source
        self.target = replace(
            target,
            split=target.split.without_labels(),
            stream=target.stream + 1 if target.stream == source.stream else target.stream,
        )

    def __len__(self) -> int:
        return max(len(self.source), len(self.target))

    def __iter__(self) -> Iterator[DomainBatch]:
        return self.epoch(0)

    def sharded(self, rank: int, world: int) -> DomainLoader:
        """Return this loader as process ``rank`` of ``world`` uses it."""
        return DomainLoader(self.source.sharded(rank, world), self.target.sharded(rank, world))

    def epoch(self, epoch: int, start: int = 0) -> Iterator[DomainBatch]:
        """Yield the pairs of batches of one epoch, from step ``start`` on."""
        _check(epoch, start, len(self))
        first = epoch * len(self) + start
        sides = [endless(side, len(side), first) for side in (self.source, self.target)]
        return (DomainBatch(next(sides[0]), next(sides[1])) for _ in range(start, len(self)))


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
            rule, argument = "the loader gave another number of batches than its length", f"{length - skipped} batches"
            raise RunFailed(rule, argument=f"{argument} of epoch {epoch}", given=got)
        epoch, skipped = epoch + 1, 0
