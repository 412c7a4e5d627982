"""One run of the loop: it knows a `Task`, an iterable of batches and a `TrainConfig`, and no method.

A run is a sequence of steps; everything that decides step ``t`` is a function of ``t`` (schedule, data position) or
part of the checkpoint (weights, optimizer, average, random states), so a run continued from any checkpoint is the same.
Between steps the loop does no work on the device and waits for none: losses are kept as tensors and read once per
``log_every`` steps, on a CPU at every step, where reading costs nothing.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.data.batch import Batch, DomainBatch
from convsmith.data.loader import endless
from convsmith.data.source import Progress
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.training import checkpoint as checkpoints
from convsmith.training import randomness
from convsmith.training.config import RESUME_FREE, TrainConfig
from convsmith.training.history import History, read_history
from convsmith.training.machine import Machine, Placed, distributed, gather
from convsmith.training.recipe import create_optimizer, create_schedule
from convsmith.training.task import Losses, Task


@dataclass(frozen=True)
class FitResult:
    """What came out of `convsmith.training.fit`.

    ``steps`` updates were done of ``total_steps``; ``best_step`` and ``best_value`` belong to the best evaluation of
    the task's monitored metric; ``seconds`` is training time, earlier parts of a resumed run included.
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


class Run:
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
        from timm.utils import ModelEmaV3

        self.task, self.loader, self.config, self.machine, self.progress = task, loader, config, machine, progress
        self.out = out
        self.batches = len(loader)
        self.total = config.total_steps(self.batches)
        self.validation = validation
        randomness.seed_all(config.seed + machine.rank)
        self.wrapped: nn.Module = task.to(machine.device)
        if machine.world > 1:
            if config.sync_batchnorm:
                nn.SyncBatchNorm.convert_sync_batchnorm(task)
            self.wrapped = distributed(task, machine.device, config.find_unused)
        self.optimizer = create_optimizer(task, config)
        self.parameters = [p for g in self.optimizer.param_groups for p in g["params"]]
        self.schedule = create_schedule(self.optimizer, config, self.total)
        self.average = ModelEmaV3(task, config.ema, use_warmup=True) if config.ema is not None else None
        self.position = checkpoints.Position(0, 0, 0)
        self.best_state: dict[str, Tensor] | None = None
        self.window: list[Tensor] = []
        self.parts: dict[str, list[Tensor]] = {}
        self.note = ""
        self.saved: int | None = None

    def start(self, resume: bool) -> None:
        """Begin at step 0, or where the latest checkpoint stands."""
        rows: list[dict[str, Any]] = []
        if resume:
            assert self.out is not None
            loaded = self.machine.share(checkpoints.load(self.out) if self.machine.main else None)
            now = {**self.config.to_json(), **self._facts()}
            checkpoints.refuse_other_run(loaded, now, free=RESUME_FREE, source=str(self.out))
            self._restore(loaded)
            rows = read_history(self.out, up_to=self.position.step)
        self.history = History(self.out if self.machine.main else None, rows)
        self.began = time.perf_counter() - self.position.seconds
        if not resume:
            self._save()

    def train(self, asked: Callable[[], bool]) -> bool:
        """Do the remaining steps, as long as nobody has ``asked`` for an end; return whether somebody has."""
        start = self.position.step * self.config.accumulate
        with closing(endless(self.loader, self.batches, start)) as stream:  # a loader's threads end with it
            return self._steps(stream, asked)

    def _steps(self, stream: Iterator[Any], asked: Callable[[], bool]) -> bool:
        config, machine, task = self.config, self.machine, self.task
        scaler, clip, accumulate = machine.accelerator.scaler, config.clip, config.accumulate
        on_cpu, alone = machine.device.type == "cpu", machine.world == 1
        step, shown = self.position.step, 0.0
        task.train()
        while step < self.total and not self.position.complete:
            task.before_step(step)
            self.schedule.step_update(step)
            for i in range(accumulate):
                batch = self._place(next(stream))
                syncing = alone or i == accumulate - 1
                with nullcontext() if syncing else self.wrapped.no_sync():  # type: ignore[operator]  # DDP's method
                    with machine.autocast():
                        losses: Losses = self.wrapped(batch, step)
                    loss = losses.total if accumulate == 1 else losses.total / accumulate
                    (loss if scaler is None else scaler.scale(loss)).backward()
                self.window.append(losses.total.detach())
                for name, value in losses.parts.items():
                    self.parts.setdefault(name, []).append(value.detach())
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
                self.average.update(task, step + 2)  # its count begins at 1, and its first decay is 0
            step += 1
            self.position = replace(self.position, step=step)

            last = step == self.total
            if step % config.log_every == 0 or last:
                self._log()
            if self.validation is not None and (last or self._due(config.evaluate_every)):
                self._evaluate()
            stop = (alone or step % config.log_every == 0) and machine.any(asked())
            if last or (config.patience is not None and self.position.stale >= config.patience):
                self.position = replace(self.position, complete=True)
            elif stop or self._due(config.checkpoint_every) or self.position.best_step == step:
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
                self.task.load_state_dict(self.average.module.state_dict())
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

    def _place(self, batch: Any) -> Any:
        """Return a batch on the device; the images of batches of ours take the type of the network's parameters."""
        first = next(self.task.parameters(), None)
        if first is not None and first.is_floating_point() and isinstance(batch, Batch | DomainBatch):
            return batch.to(self.machine.device, first.dtype)
        return batch if self.machine.device.type == "cpu" else batch.to(self.machine.device)

    def _due(self, every: int | None) -> bool:
        """Tell whether ``every`` steps have just ended, or without a number an epoch (within the step, if need be)."""
        step, accumulate = self.position.step, self.config.accumulate
        if every is not None:
            return step % every == 0
        return step * accumulate // self.batches > (step - 1) * accumulate // self.batches

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
        rule = f"the loss is not finite at step {step}"
        hint = "lower the learning rate, warm up, clip gradients, or use fp32" + (f"; {kept}" if kept else "")
        raise RunFailed(rule, argument=f"step {step} of {self.total}", given=value, hint=hint)

    def _log(self) -> None:
        values = self._check_window()
        row: dict[str, Any] = {"kind": "train", **self._where(), "lr": self.optimizer.param_groups[0]["lr"]}
        row["loss"] = sum(values) / len(values)
        for name, kept in self.parts.items():
            row[name] = torch.stack(kept).float().mean().item()
        row["seconds"] = self._seconds()
        self.window, self.parts = [], {}
        self.note = f"loss {row['loss']:.4g}"
        self._add(row)

    def _where(self) -> dict[str, Any]:
        epochs = self.position.step * self.config.accumulate / self.batches
        return {"step": self.position.step, "epoch": round(epochs, 4)}

    def _seconds(self) -> float:
        return round(time.perf_counter() - self.began, 3)

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
            with self._averaged() if self.average is not None else nullcontext():
                with self.machine.autocast():
                    metrics = dict(self.task.evaluate(Placed(self.validation, self._place)))
                if self._improves(metrics) and self.out is None and self.config.restore == "best":
                    self.best_state = {k: v.detach().clone() for k, v in self.task.state_dict().items()}
            self.task.train()
        metrics = self.machine.share(metrics)
        assert metrics is not None
        changed: dict[str, Any] = {"stale": self.position.stale + 1}
        if self._improves(metrics):
            changed = {"best_step": self.position.step, "best_value": metrics[self.task.monitor], "stale": 0}
        self.position = replace(self.position, **changed)
        self._add({"kind": "evaluation", **self._where(), **metrics, "seconds": self._seconds()})
        loss = [part for part in self.note.split(", ") if part.startswith("loss ")]
        self.note = ", ".join([*loss, f"{self.task.monitor} {metrics[self.task.monitor]:.4g}"])

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """Put the average into the task inside the ``with`` block, and its own weights back after it."""
        assert self.average is not None
        held = {name: tensor.clone() for name, tensor in self.task.state_dict().items()}
        self.task.load_state_dict(self.average.module.state_dict())
        try:
            yield
        finally:
            self.task.load_state_dict(held)

    def _improves(self, metrics: dict[str, float]) -> bool:
        if self.task.monitor not in metrics:
            rule = "the task's monitored metric is not among those it evaluates"
            argument = f"monitor {self.task.monitor!r} of {type(self.task).__name__}"
            raise InvalidArgument(rule, argument=argument, given=", ".join(metrics))
        value, best = metrics[self.task.monitor], self.position.best_value
        return math.isfinite(value) and (best is None or value > best)

    def _save(self) -> None:
        if self.out is None:
            return
        self._check_window()
        checkpoints.refuse_broken(self.task, self.position.step)
        random_states = gather(randomness.capture(), self.machine.world)
        self.saved = self.position.step
        if not self.machine.main:
            return
        epoch, batch = divmod(self.position.step * self.config.accumulate, self.batches)
        self.position = replace(self.position, epoch=epoch, batch=batch, seconds=self._seconds())
        scaler = self.machine.accelerator.scaler
        state = {
            "optimizer": self.optimizer.state_dict(),
            "average": self.average.module.state_dict() if self.average is not None else None,
            "scaler": scaler.state_dict() if scaler is not None else None,
            "random": random_states,
            "window": [w.cpu() for w in self.window],
            "parts": {k: [w.cpu() for w in kept] for k, kept in self.parts.items()},
        }
        checkpoints.save(
            self.out,
            checkpoints.Checkpoint(self.position, self.config.to_json(), self.task.state_dict(), state, self._facts()),
            keep_last=self.config.keep_last,
        )

    def _facts(self) -> dict[str, Any]:
        return {
            "batches": self.batches,
            "processes": self.machine.world,
            "precision": self.machine.precision,
            "task": type(self.task).__name__,
            "task settings": repr(self.task.settings),
        }

    def _restore(self, loaded: checkpoints.Checkpoint) -> None:
        checkpoints.load_weights(self.task, loaded.weights, source=str(self.out))
        state: Any = loaded.state
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average is not None:
            self.average.module.load_state_dict(state["average"])
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
