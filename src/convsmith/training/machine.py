"""Device, precision and processes, through accelerate."""

from __future__ import annotations

import atexit
import gc
import importlib.util
import os
import platform
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convsmith.arguments import checked
from convsmith.data.batch import Batch
from convsmith.errors import ConvsmithError, InvalidArgument, MissingExtra, RunFailed, require
from convsmith.training.config import TrainConfig


def rank_and_world() -> tuple[int, int]:
    """Return this process's number and the number of processes, as ``torchrun`` and ``accelerate launch`` set them.

    A loader needs both before `fit` has started any process group.

    Examples:
        >>> rank_and_world()
        (0, 1)
    """
    return int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))


@checked
def resolve_device(name: str) -> torch.device:
    """Turn ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` into a device that exists.

    Raises:
        InvalidArgument: this machine has no such device.

    Examples:
        >>> resolve_device("cpu")
        device(type='cpu')
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        hint = "auto, cpu, cuda, cuda:1, ..."
        raise InvalidArgument("no device has this name", argument="device", given=repr(name), hint=hint) from error
    there = {
        "cpu": 1,
        "cuda": torch.cuda.device_count(),
        "mps": int(torch.backends.mps.is_available()),
        "xpu": torch.xpu.device_count() if hasattr(torch, "xpu") else 0,
    }.get(device.type, 0)
    if (device.index or 0) >= there:
        found = "no such device" if there == 0 else f"{there} of this kind"
        rule = "this machine does not have the device"
        raise InvalidArgument(rule, argument="device", given=f"{name!r}; found {found}", hint="device auto or cpu")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """Return ``"fp32"``, ``"bf16"`` or ``"fp16"``; ``"auto"`` is bf16 on a CUDA device that has it, else fp32."""
    if name == "auto":
        return "bf16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "fp32"
    if name == "fp16" and device.type == "cpu":
        rule = "fp16 training needs a GPU"
        raise InvalidArgument(rule, argument="precision", given=f"fp16 on {device}", hint="precision bf16 or fp32")
    return name


@dataclass(frozen=True)
class Machine:
    """Where and how a run computes."""

    accelerator: Any
    device: torch.device
    precision: str
    rank: int
    world: int

    @property
    def main(self) -> bool:
        """Whether this process writes files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of a forward pass."""
        if self.precision == "fp32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16 if self.precision == "bf16" else torch.float16)

    def share(self, value: Any) -> Any:
        """Return the main process's value in every process."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device)
        return box[0]

    @contextmanager
    def together(self, out: Path | None) -> Iterator[None]:
        """Turn what a collective raises once another process has ended into `RunFailed` that names the process."""
        if self.world == 1:
            yield
            return
        places = gather((platform.node(), os.getpid()), self.world)
        try:
            yield
        except RuntimeError as error:
            text = str(error)
            if isinstance(error, ConvsmithError) or not ("gloo" in text or "NCCL" in text or "peer" in text):
                raise
            named = [f"process {n} (pid {places[n][1]} on {places[n][0]})" for n in _ended(places)]
            rule, argument = "another process of this run ended", ", ".join(named) or f"one of {self.world} processes"
            hint = f"start as many processes again with --resume --out {out}: its checkpoints are kept"
            raise RunFailed(rule, argument=argument, given=" ".join(text.split())[:160], hint=hint) from error

    def any(self, flag: bool) -> bool:
        """Return whether the flag is set in any process."""
        if self.world == 1:
            return flag
        word = torch.tensor([int(flag)], device=self.device)
        torch.distributed.all_reduce(word, op=torch.distributed.ReduceOp.MAX)
        return bool(word.item())

    def copy_from_main(self, tensors: list[Tensor]) -> None:
        """Overwrite the tensors with the main process's."""
        if self.world > 1:
            for tensor in tensors:
                torch.distributed.broadcast(tensor, src=0)


def distributed(module: nn.Module, device: torch.device, find_unused: bool) -> nn.Module:
    """Wrap a module whose gradients are averaged over the processes; on a CPU in an order that a restart keeps."""
    if device.type == "cuda":
        return DistributedDataParallel(module, device_ids=[device], find_unused_parameters=find_unused)
    everything = 1 + sum(p.numel() * p.element_size() for p in module.parameters()) // 2**20
    wrapped = DistributedDataParallel(module, bucket_cap_mb=everything, find_unused_parameters=find_unused)
    order = {p.data_ptr(): i for i, p in enumerate(module.parameters())}
    wrapped.register_comm_hook(None, lambda _, bucket: mean_in_order(order, bucket))
    return wrapped


def mean_in_order(order: dict[int, int], bucket: torch.distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """Average a bucket over the processes, its gradients laid out by ``order`` (of the parameters' addresses).

    A ring adds up each element in an order that follows from its place, and DDP lays its bucket anew after the first
    step, by the times at which gradients arrived: three processes that resume would sum in another order than those
    that went on.
    """
    places = [order[parameter.data_ptr()] for parameter in bucket.parameters()]
    gradients = [gradient for _, gradient in sorted(zip(places, bucket.gradients(), strict=True), key=itemgetter(0))]
    flat = torch.cat([gradient.flatten() for gradient in gradients]) / torch.distributed.get_world_size()

    def back(_: object) -> Tensor:
        for gradient, part in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(part.view_as(gradient))
        return bucket.buffer()

    work = torch.distributed.all_reduce(flat, async_op=True)
    assert work is not None
    return work.get_future().then(back)


def gather(value: Any, world: int) -> list[Any]:
    """Return every process's value, by rank; the processes of a launcher become a group if they are none yet."""
    if world == 1:
        return [value]
    if not _has_group():
        torch.distributed.init_process_group("gloo")
        atexit.register(_end_group)
    values = [None] * world
    torch.distributed.all_gather_object(values, value)
    return values


def _ended(places: list[tuple[str, int]]) -> list[int]:
    """Return the processes of this host that are no more; a killed one may take a moment to go."""
    import psutil

    for _ in range(20):
        gone = []
        for rank, (host, number) in enumerate(places):
            try:
                over = psutil.Process(number).status() == psutil.STATUS_ZOMBIE
            except psutil.NoSuchProcess:
                over = True
            if over and host == platform.node():
                gone.append(rank)
        if gone:
            return gone
        time.sleep(0.1)
    return []


class Placed:
    """Batches that are changed by ``place`` when they are asked for; can be iterated more than once."""

    def __init__(self, batches: Iterable[Batch], place: Callable[[Batch], Batch]) -> None:
        self.batches, self.place = batches, place

    def __iter__(self) -> Iterator[Batch]:
        return map(self.place, self.batches)


@contextmanager
def start_machine(config: TrainConfig, out: Path | None) -> Iterator[Machine]:
    """Start accelerate for one run and leave its process-wide state as it was found.

    accelerate keeps device and precision in singletons that refuse a second, different configuration; two calls of
    `fit` in one program must not hinder each other, so the singletons are put aside and put back.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState, PartialState

    device = resolve_device(config.device)
    rank, world = rank_and_world()
    if world > 1 and device.index is not None:
        rule = "with several processes each one gets its own device"
        raise InvalidArgument(rule, argument="device", given=config.device, hint=f"device {device.type}")
    precision = resolve_precision(config.precision, device)
    if config.sync_batchnorm and device.type != "cuda":
        rule = "synchronised batch normalisation exists on CUDA devices only"
        hint = "freeze batch normalisation, use group normalisation, or train with statistics per process"
        raise InvalidArgument(rule, argument="sync_batchnorm", given=str(device), hint=hint)
    _require_trackers(config.trackers)
    singletons = (AcceleratorState, GradientState, PartialState)
    before = [dict(s._shared_state) for s in singletons]
    for s in singletons:
        s._shared_state.clear()
    had_group = _has_group()
    try:
        accelerator = Accelerator(
            cpu=device.type == "cpu",
            mixed_precision={"fp32": "no"}.get(precision, precision),
            device_placement=False,
            log_with=list(config.trackers) or None,
            project_dir=str(out) if out is not None else None,
        )
        if world > 1 and device.type != "cpu":
            device = accelerator.device
        if config.trackers:
            accelerator.init_trackers(
                "convsmith", config={k: v for k, v in config.to_json().items() if isinstance(v, (int, float, str))}
            )
        yield Machine(accelerator, device, precision, rank, world)
        if config.trackers:
            accelerator.end_training()
    finally:
        for s, state in zip(singletons, before, strict=True):
            s._shared_state.clear()
            s._shared_state.update(state)
        if _has_group() and not had_group:  # it stays for the next call, and ends with the process
            atexit.register(_end_group)


def _require_trackers(names: tuple[str, ...]) -> None:
    for name in names:
        if name == "tensorboard":
            require("tensorboard", "trackers")
        elif importlib.util.find_spec(name) is None:
            rule = f"the package {name!r} is not installed"
            raise MissingExtra(rule, argument=f"trackers {name!r}", hint=f"pip install {name}")


def _has_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _end_group() -> None:
    if _has_group():
        gc.collect()  # DistributedDataParallel sits in reference cycles and must let go of the group before it ends
        torch.distributed.destroy_process_group()
