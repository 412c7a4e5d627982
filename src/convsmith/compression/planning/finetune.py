"""Get the accuracy back: re-estimate batch normalisation, then a short training that listens to the original.

`finetune` trains a compressed network through `convsmith.training.fit`, with the original as teacher. Zeros of sparse
layers stay zeros, low-bit layers train their latent weights, a network in int8 training comes back as int8.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.arguments import checked
from convsmith.compression.convert import compression_history
from convsmith.compression.methods.int8 import Int8Model, finish
from convsmith.compression.methods.method import METHODS
from convsmith.compression.methods.sparse import mask
from convsmith.compression.planning.agreement import is_scores
from convsmith.compression.planning.subject import Progress
from convsmith.data.batch import Batch, check_batch
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.inspection.layers import KINDS
from convsmith.inspection.modes import BATCH_NORMS, copied, evaluating, unwrap
from convsmith.inspection.outputs import joined_output
from convsmith.training import ClassificationTask, Losses, TrainConfig, distillation_loss, fit, norms

#: share of the steps over which gradual sparsity grows; the rest trains at the final sparsity
GROWTH = 0.7
#: steps between two choices of the mask while sparsity grows
EVERY = 5


@checked
def reestimate_batchnorm(model: nn.Module, batches: Iterable[Batch], *, limit: int = 32) -> nn.Module:
    """Return a copy of ``model`` whose batch normalisations hold the mean statistics of ``batches``; no labels needed.

    The statistics are the plain average over at most ``limit`` batches, taken in training mode of the normalisations
    alone, so that dropout stays off. A network without batch normalisation comes back unchanged.

    Examples:
        >>> adjusted = reestimate_batchnorm(model, loader)
    """
    result = copied(model)
    norms = [m for m in result.modules() if isinstance(m, BATCH_NORMS) and m.track_running_stats]
    if not norms:
        return result
    before = [(norm, norm.momentum, copy.deepcopy(norm.state_dict())) for norm in norms]
    device = next(result.parameters()).device
    with evaluating(result), torch.no_grad():
        for norm in norms:
            norm.reset_running_stats()
            norm.momentum = None  # cumulative average
            norm.training = True
        for batch in itertools.islice(batches, limit):
            check_batch(batch)
            if len(batch) > 1:
                result(batch.images.to(device))
    ran = [bool(norm.num_batches_tracked) for norm in norms]
    if not any(ran):
        raise InvalidArgument("batch normalisation needs at least one batch of two images", given="none")
    for (norm, momentum, state), new in zip(before, ran, strict=True):
        norm.momentum = momentum
        if not new:  # a head that only trains
            norm.load_state_dict(state)
    return result


class FinetuneInterrupted(RunFailed):
    """The training was stopped between two steps; with ``out`` it goes on from its checkpoint."""


class FinetuneTask(ClassificationTask):
    """Classification with a teacher that keeps sparse layers sparse.

    Args:
        model, num_classes, teacher, distill, temperature, still: as in `ClassificationTask`.
        sparse: the plan's setting by layer name for layers whose zeros must stay.
        gradual: steps over which the zeros grow, cubically (Zhu & Gupta 2017, eq. 1), None for zeros from the start.
    """

    def __init__(
        self,
        model: nn.Module,
        num_classes: int,
        teacher: nn.Module,
        *,
        distill: float = 0.5,
        temperature: float = 4.0,
        sparse: Mapping[str, Mapping[str, Any]] | None = None,
        gradual: int | None = None,
        still: Sequence[nn.Module] = (),
    ) -> None:
        shown = teacher if distill > 0 else None
        super().__init__(model, num_classes, teacher=shown, distill=distill, temperature=temperature, still=still)
        self.sparse = {name: dict(setting) for name, setting in (sparse or {}).items()}
        self.gradual = gradual
        for number, name in enumerate(self.sparse):
            self.register_buffer(f"kept_{number}", self._weight(name).detach() != 0)

    def _weight(self, name: str) -> Tensor:
        weight: Any = self.model.get_submodule(name).weight
        return weight

    def before_step(self, step: int) -> None:
        """Put the zeros back before the step reads the weights."""
        if self.gradual is not None and (step % EVERY == 0 or step >= self.gradual) and step <= self.gradual:
            share = step / self.gradual if self.gradual else 1.0
            for number, (name, setting) in enumerate(self.sparse.items()):
                target = mask(self._weight(name), _grown(setting, share))
                setattr(self, f"kept_{number}", target)
        self.hold()

    def hold(self) -> None:
        """Zero what must be zero."""
        with torch.no_grad():
            for number, name in enumerate(self.sparse):
                self._weight(name).mul_(getattr(self, f"kept_{number}"))

    def forward(self, batch: Batch, step: int) -> Losses:
        """Return `ClassificationTask`'s losses; with ``distill`` 1 no label is read and any output may be taught."""
        if self.distill < 1 or self.teacher is None:
            return super().forward(batch, step)
        got = joined_output(self.model(batch.images))
        with torch.no_grad():
            taught = joined_output(self.teacher(batch.images))
        scale = (taught - taught.mean(0)).square().mean().clamp_min(1e-12)
        error = (got - taught).square().mean() / scale
        if not is_scores(taught):
            return Losses(error, {"error": error})
        kd = distillation_loss(got, taught, self.temperature)
        return Losses(error + kd / self.temperature**2, {"error": error, "distillation": kd})


def _grown(setting: Mapping[str, Any], share: float) -> dict[str, Any]:
    """Return a setting at a share of its way: s = s_final (1 - (1 - share)^3); n of n:m rounded up."""
    done = 1 - (1 - share) ** 3
    if "m" in setting:
        closed = round((setting["m"] - setting["n"]) * done)
        return {"n": setting["m"] - closed, "m": setting["m"]}
    return {**setting, "sparsity": setting["sparsity"] * done}


@checked
def finetune(
    model: nn.Module,
    teacher: nn.Module,
    loader: Any,
    *,
    num_classes: int,
    config: TrainConfig | None = None,
    epochs: int = 10,
    distill: float = 0.5,
    temperature: float = 4.0,
    gradual: bool = False,
    freeze_norm: bool = False,
    validation: Iterable[Batch] | None = None,
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
) -> nn.Module:
    """Return a trained copy of a compressed network, in evaluation mode; neither argument network changes.

    Args:
        model: what `compress` returned.
        teacher: the original; its logits are the soft targets.
        loader: training batches, as `fit` takes them.
        num_classes: of the data.
        config: the training loop's settings; by default SGD from lr 0.02, cosine, gradients clipped
            at norm 1 (a projected network can start far off), ``epochs`` epochs.
        epochs: used without ``config``.
        distill: weight of the teacher against the labels, in [0, 1]; 0 trains on labels alone.
        temperature: of the distillation.
        gradual: for sparse networks: start from the original's dense weights and let the zeros grow.
        freeze_norm: keep the statistics of batch normalisations; for a few hundred images.
        validation: batches for the evaluations during training, as in `fit`.
        out: folder for checkpoints and history, as in `fit`.
        resume: go on from the latest checkpoint in ``out``.
        progress: called with (done, total, note).

    Raises:
        InvalidArgument: an int8 graph (it cannot be trained: use mode ``"qat"``), ``gradual`` without sparse layers.
        RunFailed: the loss became infinite.
        FinetuneInterrupted: the run was stopped.

    Examples:
        >>> smaller = compress(model, "low-rank", example=images, keep_macs=0.5)
        >>> trained = finetune(smaller, model, loader, num_classes=10, epochs=1)
    """
    model = unwrap(model)
    if isinstance(model, Int8Model):
        raise InvalidArgument(
            "an int8 graph cannot be trained",
            argument="finetune",
            hint="compress with int8 in mode='qat' and finetune that",
        )
    history = compression_history(model)
    sparse = _sparse_layers(model, history)
    if gradual and not sparse:
        raise InvalidArgument("only sparse layers can become sparse gradually", given=[r["method"] for r in history])
    work = copied(model)
    config = config or TrainConfig(epochs=epochs, lr=0.02, clip=1.0)
    steps = config.total_steps(len(loader))
    if gradual:
        _densify(work, teacher, sparse)
    work.train()
    task = FinetuneTask(
        work,
        num_classes,
        teacher,
        distill=distill,
        temperature=temperature,
        sparse=sparse,
        gradual=min(round(GROWTH * steps), steps - 1) if gradual else None,
        still=norms(work) if freeze_norm else (),
    )
    result = fit(task, loader, config, validation=validation, out=out, resume=resume, progress=progress)
    if result.interrupted:
        raise FinetuneInterrupted(f"fine-tuning stopped after {result.steps} of {steps} steps")
    task.hold()
    return finish(work).eval()


def _sparse_layers(model: nn.Module, history: list[dict[str, Any]]) -> dict[str, Mapping[str, Any]]:
    """Return the sparse layers that are still plain layers, with their settings."""
    there = dict(model.named_modules())
    found: dict[str, Mapping[str, Any]] = {}
    for recipe in history:
        if METHODS[recipe["method"]].keeps_zeros:
            found.update({name: s for name, s in recipe["layers"].items() if isinstance(there.get(name), tuple(KINDS))})
    return found


def _densify(work: nn.Module, original: nn.Module, sparse: Mapping[str, Any]) -> None:
    """Give sparse layers the original's dense weights."""
    source = dict(original.named_parameters())
    for name in sparse:
        weight: Any = work.get_submodule(name).weight
        dense = source.get(f"{name}.weight")
        if dense is None or dense.shape != weight.shape:
            raise InvalidArgument(
                "gradual sparsity starts from the original's weights, and this layer has none of its shape",
                given=name,
                hint="make the network sparse before other methods change it, or leave gradual away",
            )
        with torch.no_grad():
            weight.copy_(dense)
