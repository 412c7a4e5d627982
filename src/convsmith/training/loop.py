"""The one training loop: it knows a `Task`, an iterable of batches and a `TrainConfig`, and no method.

A run is a sequence of steps; everything that decides step ``t`` is a function of ``t`` (schedule, data position) or
part of the checkpoint (weights, optimizer, average, random states), so a run continued from any checkpoint is the same.
Between steps the loop does no work on the device and waits for none: losses are kept as tensors and read once per
``log_every`` steps, on a CPU at every step, where reading costs nothing.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.training import checkpoint as checkpoints
from convsmith.training import randomness
from convsmith.training.config import RESUME_FREE, TrainConfig
from convsmith.training.ema import WeightAverage
from convsmith.training.history import History, read_history
from convsmith.training.interruption import Interruption
from convsmith.training.machine import Machine, start_machine
from convsmith.training.optimizers import create_optimizer, set_rates
from convsmith.training.schedules import factor
from convsmith.training.task import Losses, Task

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class FitResult:
    """What came out of `fit`.

    ``steps`` updates were done of ``total_steps``; ``best_step`` and ``best_value`` belong to the best evaluation of
    the task's primary metric; ``seconds`` is training time, earlier parts of a resumed run included.
    """

    history: list[dict[str, Any]]
    steps: int
    total_steps: int
    best_step: int | None
    best_value: float | None
    seconds: float
    interrupted: bool
    stopped_early: bool
    device: str
    precision: str
    checkpoint: Path | None = None


def fit(
    task: Task,
    loader: Any,
    config: TrainConfig,
    *,
    validation: Iterable[Batch] | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> FitResult:
    """Train ``task`` in place and leave it in eval mode on the device it was trained on.

    Args:
        task: what is trained; see `Task`.
        loader: has ``len()`` (batches per epoch) and ``epoch(e, start)``; or is a plain sequence of batches.
        config: see `TrainConfig`.
        validation: batches for `Task.evaluate`, iterated anew each time.
        out: run folder for checkpoints, ``history.jsonl`` and ``history.csv``; None keeps everything in memory.
        resume: continue from the latest checkpoint in ``out``: the same weights, bit for bit on a CPU, as without the
            interruption.
        progress: called between steps with steps done, steps in all and a note.

    Raises:
        InvalidArgument: before any work, for settings, data or a checkpoint that do not fit.
        RunFailed: a loss that is not finite; the last good checkpoint stays.

    SIGTERM and Ctrl-C end the run between two steps, after a checkpoint, with ``interrupted`` set; a second Ctrl-C
    stops at once. The global random states are put back to what they were before the call.
    """
    _check(loader, config, validation, out, resume)
    before = randomness.capture()
    try:
        with start_machine(config, out) as machine, Interruption() as interruption:
            run = _Run(task, loader, config, validation, out, progress, machine)
            run.start(resume)
            interrupted = run.train(interruption)
            return run.finish(interrupted)
    finally:
        randomness.restore(before)


class _Run:
    """The state of one call of `fit`; `train` is the loop."""

    def __init__(
        self,
        task: Task,
        loader: Any,
        config: TrainConfig,
        validation: Iterable[Batch] | None,
        out: Path | None,
        progress: Progress | None,
        machine: Machine,
    ) -> None:
        self.task, self.loader, self.config, self.machine, self.progress = task, loader, config, machine, progress
        self.out = out
        self.batches = len(loader)
        self.total = config.total_steps(self.batches)
        per_epoch = max(1, math.ceil(self.batches / config.accumulate))
        self.evaluate_every = config.evaluate_every or per_epoch
        self.checkpoint_every = config.checkpoint_every or per_epoch
        self.validation = validation
        randomness.seed_all(config.seed + machine.rank)
        self.wrapped: nn.Module = self._place()
        self.optimizer = create_optimizer(task, config)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.average = WeightAverage(task, config.ema) if config.ema is not None else None
        self.position = checkpoints.Position(0, 0, 0)
        self.best_state: dict[str, Tensor] | None = None
        self.window: list[Tensor] = []
        self.parts: dict[str, list[Tensor]] = {}
        self.note = ""
        self.saved: int | None = None

    def _place(self) -> nn.Module:
        self.task.to(self.machine.device)
        if self.machine.world == 1:
            return self.task
        if self.config.sync_batchnorm:
            nn.SyncBatchNorm.convert_sync_batchnorm(self.task)
        on_gpu = self.machine.device.type == "cuda"
        return DistributedDataParallel(
            self.task,
            device_ids=[self.machine.device] if on_gpu else None,
            find_unused_parameters=self.config.find_unused,
        )

    def start(self, resume: bool) -> None:
        """Begin at step 0, or where the latest checkpoint stands."""
        rows: list[dict[str, Any]] = []
        if resume:
            assert self.out is not None
            loaded = self.machine.share(checkpoints.load(self.out) if self.machine.main else None)
            self._refuse_other_run(loaded)
            self._restore(loaded)
            rows = read_history(self.out, up_to=self.position.step)
        self.history = History(self.out if self.machine.main else None, rows)
        self.began = time.perf_counter() - self.position.seconds
        if not resume:
            self._save()

    def train(self, interruption: Interruption) -> bool:
        """Do the remaining steps; return whether a signal ended them early."""
        config, machine, task = self.config, self.machine, self.task
        stream = self._stream()
        scaler, clip, accumulate = machine.accelerator.scaler, config.clip, config.accumulate
        on_cpu, alone = machine.device.type == "cpu", machine.world == 1
        step, shown = self.position.step, 0.0
        task.train()
        while step < self.total and not self.position.complete:
            task.before_step(step)
            set_rates(self.optimizer, factor(config, step, self.total))
            for i in range(accumulate):
                batch = next(stream)
                if not on_cpu:
                    batch = batch.to(machine.device)
                syncing = alone or i == accumulate - 1
                with nullcontext() if syncing else self.wrapped.no_sync():  # type: ignore[operator]  # DDP's method
                    with machine.autocast():
                        losses: Losses = self.wrapped(batch, step)
                    loss = losses.total if accumulate == 1 else losses.total / accumulate
                    (loss if scaler is None else scaler.scale(loss)).backward()
                self._keep(losses)
                if on_cpu and not math.isfinite(losses.total.item()):
                    self._fail(step, losses.total.item())
            if scaler is not None and clip is not None:
                scaler.unscale_(self.optimizer)
            if clip is not None:
                nn.utils.clip_grad_norm_(self.parameters, clip)
            if scaler is None:
                self.optimizer.step()
            else:
                scaler.step(self.optimizer)
                scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
            if self.average is not None:
                self.average.update(step)
            step += 1
            self.position = replace(self.position, step=step)

            last = step == self.total
            if step % config.log_every == 0 or last:
                self._log()
            if self.validation is not None and (step % self.evaluate_every == 0 or last):
                self._evaluate()
            stop = (alone or step % config.log_every == 0) and machine.any(interruption.asked)
            if last or self._patience_is_over():
                self.position = replace(self.position, complete=True)
            elif stop or step % self.checkpoint_every == 0 or self.position.best_step == step:
                self._save()
            if self.progress is not None and (last or time.perf_counter() - shown > 0.1):
                shown = time.perf_counter()
                self.progress(step, self.total, self.note)
            if stop and not self.position.complete:
                return True
        if self.saved != step or self.position.complete:
            self._save()
        return False

    def finish(self, interrupted: bool) -> FitResult:
        """Leave the weights in the task that the configuration asks for."""
        best = self.position.best_step
        if not interrupted:
            if self.config.restore == "best" and best is not None and best != self.position.step:
                if self.machine.main:
                    self.task.load_state_dict(self._best_weights(best))
            elif self.average is not None:
                self.average.write_back()
            self.machine.copy_from_main(list(self.task.state_dict().values()))
        self.task.eval()
        return FitResult(
            history=self.history.rows,
            steps=self.position.step,
            total_steps=self.total,
            best_step=best,
            best_value=self.position.best_value,
            seconds=time.perf_counter() - self.began,
            interrupted=interrupted,
            stopped_early=not interrupted and self.position.step < self.total,
            device=str(self.machine.device),
            precision=self.machine.precision,
            checkpoint=checkpoints.path_of(self.out, self.position.step) if self.out is not None else None,
        )

    def _stream(self) -> Iterator[Any]:
        """Endless batches from the current data position on: batch ``n`` is batch ``n % len`` of epoch ``n // len``."""
        epoch, start = divmod(self.position.step * self.config.accumulate, self.batches)
        while True:
            got = 0
            source = (
                self.loader.epoch(epoch, start)
                if hasattr(self.loader, "epoch")
                else itertools.islice(self.loader, start, None)
            )
            for batch in source:
                got += 1
                yield batch
            if got != self.batches - start:
                raise RunFailed(
                    "the loader gave another number of batches than its length",
                    asked=f"{self.batches - start} batches of epoch {epoch}",
                    given=got,
                )
            epoch, start = epoch + 1, 0

    def _keep(self, losses: Losses) -> None:
        self.window.append(losses.total.detach())
        for name, value in losses.parts.items():
            self.parts.setdefault(name, []).append(value.detach())

    def _check_window(self) -> list[float]:
        """Read the losses kept since the last row; the one place where a GPU is waited for."""
        values = torch.stack(self.window).float().tolist() if self.window else []
        for i, value in enumerate(values):
            if not math.isfinite(value):
                self._fail(self.position.step - math.ceil((len(values) - i) / self.config.accumulate), value)
        return values

    def _fail(self, step: int, value: float) -> None:
        steps = checkpoints.saved_steps(self.out) if self.out is not None else []
        kept = f"the last good checkpoint is {checkpoints.path_of(self.out, steps[-1])}" if self.out and steps else ""
        raise RunFailed(
            f"the loss is not finite at step {step}",
            asked=f"step {step} of {self.total}",
            given=value,
            mend="lower the learning rate, warm up, clip gradients, or use fp32" + (f"; {kept}" if kept else ""),
        )

    def _log(self) -> None:
        values = self._check_window()
        row: dict[str, Any] = {"kind": "train", **self._where(), "lr": self.optimizer.param_groups[0]["lr"]}
        row["loss"] = sum(values) / len(values)
        for name, kept in self.parts.items():
            row[name] = torch.stack(kept).float().mean().item()
        row["seconds"] = round(time.perf_counter() - self.began, 3)
        self.window, self.parts = [], {}
        self.note = f"loss {row['loss']:.4g}"
        self._add(row)

    def _where(self) -> dict[str, Any]:
        step = self.position.step
        return {"step": step, "epoch": round(step * self.config.accumulate / self.batches, 4)}

    def _add(self, row: dict[str, Any]) -> None:
        self.history.add(row)
        if self.config.trackers:
            numbers = {f"{row['kind']}/{k}": v for k, v in row.items() if isinstance(v, (int, float))}
            self.machine.accelerator.log(numbers, step=row["step"])

    @torch.no_grad()
    def _evaluate(self) -> None:
        assert self.validation is not None
        self._check_window()
        metrics: dict[str, float] | None = None
        if self.machine.main:
            self.task.eval()
            with self.average.applied() if self.average is not None else nullcontext():
                with self.machine.autocast():
                    metrics = dict(self.task.evaluate(_OnDevice(self.validation, self.machine.device)))
                if self._improves(metrics) and self.out is None and self.config.restore == "best":
                    self.best_state = {k: v.detach().clone() for k, v in self.task.state_dict().items()}
            self.task.train()
        metrics = self.machine.share(metrics)
        assert metrics is not None
        if self._improves(metrics):
            self.position = replace(
                self.position, best_step=self.position.step, best_value=metrics[self.task.primary], stale=0
            )
        else:
            self.position = replace(self.position, stale=self.position.stale + 1)
        seconds = round(time.perf_counter() - self.began, 3)
        self._add({"kind": "evaluation", **self._where(), **metrics, "seconds": seconds})

    def _improves(self, metrics: dict[str, float]) -> bool:
        if self.task.primary not in metrics:
            raise InvalidArgument(
                "the task's primary metric is not among those it evaluates",
                asked=f"primary {self.task.primary!r} of {type(self.task).__name__}",
                given=", ".join(metrics),
            )
        value, best = metrics[self.task.primary], self.position.best_value
        return math.isfinite(value) and (best is None or value > best)

    def _patience_is_over(self) -> bool:
        return self.config.patience is not None and self.position.stale >= self.config.patience

    def _save(self) -> None:
        if self.out is None:
            return
        self._check_window()
        random_states = self.machine.gather(randomness.capture())
        self.saved = self.position.step
        if not self.machine.main:
            return
        epoch, batch = divmod(self.position.step * self.config.accumulate, self.batches)
        self.position = replace(
            self.position, epoch=epoch, batch=batch, seconds=round(time.perf_counter() - self.began, 3)
        )
        scaler = self.machine.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.state_dict() if self.average is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "random": random_states,
            "window": [w.cpu() for w in self.window],
            "parts": {k: [w.cpu() for w in kept] for k, kept in self.parts.items()},
        }
        checkpoints.save(
            self.out,
            checkpoints.Checkpoint(self.position, self.config.to_json(), self.task.state_dict(), state, self._facts()),
            keep=self.config.keep,
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "processes": self.machine.world,
            "precision": self.machine.precision,
            "task": type(self.task).__name__,
        }

    def _refuse_other_run(self, loaded: checkpoints.Checkpoint) -> None:
        now = {**self.config.to_json(), **self._facts()}
        then = {**loaded.config, **loaded.facts}
        differing = [
            f"{k}: {then[k]!r} then, {now[k]!r} now"
            for k in now
            if k not in RESUME_FREE and k in then and then[k] != now[k]
        ]
        if differing:
            raise InvalidArgument(
                "a run continues only with the settings and data it began with",
                asked=f"resume {self.out}",
                given="; ".join(differing),
                mend="give the same settings, or start a new run from these weights",
            )

    def _restore(self, loaded: checkpoints.Checkpoint) -> None:
        checkpoints.load_weights(self.task, loaded.weights, source=str(self.out))
        state: Any = loaded.state
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        if self.machine.accelerator.scaler is not None and state["scaler"] is not None:
            self.machine.accelerator.scaler.load_state_dict(state["scaler"])
        device = self.machine.device
        self.window = [w.to(device) for w in state["window"]]
        self.parts = {k: [w.to(device) for w in kept] for k, kept in state["parts"].items()}
        self.position = loaded.position
        self.saved = loaded.position.step
        randomness.restore(state["random"][self.machine.rank])

    def _best_weights(self, best: int) -> dict[str, Tensor]:
        if self.out is None:
            assert self.best_state is not None
            return self.best_state
        loaded = checkpoints.load(self.out, best)
        average: Any = loaded.state["average"]
        return {**loaded.weights, **(average or {})}


class _OnDevice:
    """Validation batches, moved when they are asked for; can be iterated more than once."""

    def __init__(self, batches: Iterable[Batch], device: torch.device) -> None:
        self.batches, self.device = batches, device

    def __iter__(self) -> Iterator[Batch]:
        return (batch.to(self.device) for batch in self.batches)

    def __len__(self) -> int:
        return len(self.batches)  # type: ignore[arg-type]  # only asked where the source has a length


def _check(loader: Any, config: TrainConfig, validation: Any, out: Path | None, resume: bool) -> None:
    """Refuse before any work what cannot work."""
    if not hasattr(loader, "__len__"):
        raise InvalidArgument(
            "a loader has a length, in batches per epoch",
            asked="loader",
            given=type(loader).__name__,
            mend="give a list",
        )
    if len(loader) == 0:
        raise InvalidArgument(
            "there is no batch to train on",
            asked="loader",
            given="0 batches",
            mend="a smaller batch size or more images",
        )
    if validation is None:
        for name, asked in (
            ("patience", config.patience is not None),
            ("evaluate_every", config.evaluate_every is not None),
            ("restore", config.restore == "best"),
        ):
            if asked:
                raise InvalidArgument(
                    "needs validation data", asked=f"{name}={getattr(config, name)}", given="validation=None"
                )
    if resume and out is None:
        raise InvalidArgument("a run is resumed from its folder", asked="resume=True", given="out=None")
    if out is None:
        if config.checkpoint_every is not None:
            raise InvalidArgument("checkpoints need a run folder", asked="checkpoint_every", given="out=None")
        return
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-probe"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise InvalidArgument(
            "the run folder cannot be written", asked=str(out), given=str(error), mend="name another folder"
        ) from error
    if not resume and checkpoints.saved_steps(out):
        raise InvalidArgument(
            "this folder already holds a run",
            asked=str(out),
            given="checkpoints",
            mend="name another folder, or resume it",
        )
