"""Adapt a classifier from a labelled source to an unlabelled target, with the training loop, a validator and alarms."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.adaptation.evaluation.alarms import Alarm, CollapseRule
from convsmith.adaptation.evaluation.calibration import calibrated
from convsmith.adaptation.evaluation.examine import EXCLUDED, Examiner
from convsmith.adaptation.evaluation.validators import VALIDATORS
from convsmith.adaptation.inputs import Inputs, resolve
from convsmith.adaptation.methods.method import METHODS, Domains, DomainTask, MethodConfig, method_settings
from convsmith.adaptation.network import built, check_model
from convsmith.adaptation.result import AdaptationResult, Reference
from convsmith.data import DomainLoader, ImageSplit, Loader
from convsmith.errors import InvalidArgument
from convsmith.inspection.features import extract_features
from convsmith.training import FitResult, TrainConfig, fit, rank_and_world
from convsmith.training.checkpoint import saved_steps

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class _Plan:
    """Everything that is fixed before training."""

    inputs: Inputs
    config: TrainConfig
    batch_size: int
    validator: str | None
    oracle: bool


def adapt(
    model: nn.Module | str,
    source: Any,
    target: Any = None,
    *,
    method: str = "san",
    validator: str | None = None,
    steps: int = 1000,
    lr: float = 0.03,
    batch_size: int = 64,
    seed: int = 0,
    device: str = "auto",
    config: TrainConfig | None = None,
    target_classes: Any = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    crop: tuple[int | None, int | None] = (None, None),
    reference: Reference | AdaptationResult | str | None = "train",
    evaluate: bool = False,
    evaluations: int = 10,
    collapse: CollapseRule | None = None,
    out: Path | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **settings: Any,
) -> AdaptationResult:
    """Train ``model`` on a labelled source so that it works on an unlabelled target with the same or fewer classes.

    Args:
        model: a classifier whose logits come from a linear layer, one per source class, or a timm name; it is copied.
        source: labelled images; see `convsmith.adaptation.inputs.resolve` for every form, or its result.
        target: images whose labels, if they have any, are not looked at.
        method: one of `available()`.
        validator: choose the step by this score, computed at every evaluation; None keeps the last step. ``"oracle"``
            uses target labels and needs ``evaluate``.
        steps: updates; the same for source-only, which is trained too.
        lr: base learning rate; the schedule is ``(1 + 10 t / steps) ** -0.75`` as in this line of papers.
        batch_size: images of each domain in a step, two or more.
        seed: of weights added, order and dropout.
        device: where to train.
        config: replaces ``steps``, ``lr``, ``seed`` and ``device`` by a whole training configuration.
        target_classes: cut a labelled target to these classes (for experiments).
        size: side of the images, for specs and folders.
        channels: 1 or 3, for specs and folders.
        crop: see `convsmith.data.pair`.
        reference: ``"train"`` trains source-only first; an earlier source-only result saves that; None does without
            the guard and without both alarms that need it.
        evaluate: also measure accuracy on the target's labels, as ``oracle_accuracy``; it selects nothing.
        evaluations: passes over held-out source and whole target images in a run, for selection, alarms in the log and
            history; a ``config`` with ``evaluate_every`` decides instead.
        collapse: thresholds of the collapse alarm.
        out: run folder for checkpoints and history (source-only's under ``reference/``).
        resume: continue both from their latest checkpoints in ``out``.
        progress: called with steps done, steps in all and a note.
        settings: of the method, nested ones by their own name (``entropy=0.2``, ``inverse_temperature=10``).

    Raises:
        InvalidArgument: for every name, number or data set that cannot work, before training.
    """
    METHODS.entry(method)
    chosen = method_settings(method, settings)
    if validator is not None:
        entry = VALIDATORS.entry(validator)
        if entry.traits["uses_target_labels"] and not evaluate:
            raise InvalidArgument(
                f"the validator {validator!r} uses target labels",
                argument="validator",
                hint="say evaluate=True as well",
            )
    if batch_size < 2:
        raise InvalidArgument(
            "adaptation compares images: two or more in a batch", argument="batch_size", given=batch_size
        )
    if evaluations < 1:
        raise InvalidArgument("a run is measured at least once", argument="evaluations", given=evaluations)
    if reference is not None and not isinstance(reference, (Reference, AdaptationResult)) and reference != "train":
        raise InvalidArgument("a reference is 'train', an earlier source-only result, or None", given=repr(reference))
    if config is None:
        config = TrainConfig(
            steps=steps, lr=lr, schedule="inverse", gamma=10 / steps, seed=seed, device=device, nesterov=False
        )
    if isinstance(source, Inputs):
        inputs = source
    else:
        inputs = resolve(
            source, target, target_classes=target_classes, size=size, channels=channels, seed=config.seed, crop=crop
        )
    labels_known = bool((inputs.target_labels >= 0).all())
    if evaluate and not labels_known:
        raise InvalidArgument("the target has no labels to evaluate on", argument="evaluate=True")
    if min(len(inputs.source), len(inputs.target)) < batch_size:
        batch_size = max(2, min(len(inputs.source), len(inputs.target)))
    model = built(model, inputs, config.seed)
    check_model(model, inputs)
    plan = _Plan(inputs, _evaluating(config, batch_size, inputs, evaluations), batch_size, validator, evaluate)
    known: Reference | None = None
    if isinstance(reference, AdaptationResult):
        known = Reference(_raw(reference, inputs), reference.measurements)
    elif isinstance(reference, Reference):
        known = reference
    elif reference == "train" and method != "source-only":
        base = _train(
            model,
            "source-only",
            method_settings("source-only", {}),
            plan,
            None,
            out / "reference" if out is not None else None,
            resume,
            _named(progress, "source-only"),
            collapse,
        )
        if base.interrupted:
            return base
        known = Reference(_raw(base, inputs), base.measurements)
    return _train(model, method, chosen, plan, known, out, resume, _named(progress, method), collapse)


def _train(
    model: nn.Module,
    method: str,
    settings: MethodConfig,
    plan: _Plan,
    reference: Reference | None,
    out: Path | None,
    resume: bool,
    progress: Progress | None,
    collapse: CollapseRule | None,
) -> AdaptationResult:
    """Train one method from ``model``'s weights and say everything about what came out."""
    inputs, config = plan.inputs, plan.config
    rank, world = rank_and_world()
    loader = DomainLoader(
        _loader(inputs.source, plan.batch_size, config.seed), _loader(inputs.target, plan.batch_size, config.seed)
    ).sharded(rank, world)
    steps = config.total_steps(len(loader))
    domains = Domains(Loader(inputs.source, 512), _whole(inputs.target, rank, world), len(inputs.classes), steps)
    torch.manual_seed(config.seed)
    task: DomainTask = METHODS[method](copy.deepcopy(model), domains, settings)
    names = {"entropy", "infomax"} | ({plan.validator} if plan.validator is not None else set())
    examiner = Examiner(
        target=Loader(inputs.target, 512),
        source_training=Loader(inputs.source, 512),
        validators=tuple(sorted(names)),
        chosen=plan.validator,
        reference=reference,
        collapse=collapse,
        target_labels=inputs.target_labels if plan.oracle else None,
    )
    track = _WeightTrack(task)
    task.examine = track.wrap(examiner)
    held_out = Loader(inputs.validation, 512)
    restore = "best" if plan.validator is not None else "last"
    began = time.perf_counter()
    fitted: FitResult = fit(
        task,
        loader,
        replace(config, restore=restore),
        validation=held_out,
        out=out,
        resume=resume and out is not None and bool(saved_steps(out)),
        progress=progress,
    )
    source, target = extract_features(task.model, held_out), extract_features(task.model, Loader(inputs.target, 512))
    found = examiner.judge(task.model, source, target)
    selected = fitted.steps
    if plan.validator is not None and fitted.best_step is not None and not fitted.interrupted:
        selected = fitted.best_step
    weights = task.class_weights()
    alarms = examiner.alarms(target.logits.softmax(1), found)
    return AdaptationResult(
        model=task.model.eval(),
        method=method,
        settings=settings,
        class_weights=None if weights is None else weights.detach().cpu().float().clone(),
        history=fitted.history,
        selected_step=selected,
        steps=fitted.steps,
        validator=plan.validator,
        measurements=found,
        predictions=calibrated(task.model, inputs, source, target),
        alarms=alarms,
        warnings=_warnings(plan, alarms, fitted),
        reference=reference,
        classes=inputs.classes,
        seconds=round(time.perf_counter() - began, 3),
        interrupted=fitted.interrupted,
        weight_history=track.rows(),
    )


class _WeightTrack:
    """Adds the class weights' spread to every evaluation, so that history shows them over time."""

    def __init__(self, task: DomainTask) -> None:
        self.task = task
        self.kept: list[Tensor] = []

    def wrap(self, examiner: Examiner) -> Callable[[nn.Module, Any], dict[str, float]]:
        """Return the examiner with ``weight_k`` entries for every class."""

        def examine(model: nn.Module, batches: Any) -> dict[str, float]:
            found = examiner(model, batches)
            weights = self.task.class_weights()
            if weights is not None:
                self.kept.append(weights.detach().cpu().float().clone())
                found.update({f"weight_{k}": float(w) for k, w in enumerate(weights)})
            return found

        return examine

    def rows(self) -> Tensor:
        """Return the weights at every evaluation of this call, [evaluations, K]."""
        return torch.stack(self.kept) if self.kept else torch.zeros(0, 0)


def _warnings(plan: _Plan, alarms: tuple[Alarm, ...], fitted: FitResult) -> tuple[str, ...]:
    warnings = []
    if plan.validator is not None and fitted.best_value is not None and fitted.best_value <= EXCLUDED:
        warnings.append(
            "no step passed the guard (source accuracy below 0.9 of source-only's); the first step measured was kept"
        )
    if plan.validator == "oracle":
        warnings.append("the step was chosen with target labels (oracle)")
    return (*warnings, *(f"{alarm.kind}: {alarm.message}" for alarm in alarms))


def _raw(result: AdaptationResult, inputs: Inputs) -> Tensor:
    if len(result.predictions.index) != len(inputs.target):
        given = f"{len(result.predictions.index)} images"
        raise InvalidArgument("the reference was made for another target", given=given)
    return result.predictions.probabilities


def _loader(split: ImageSplit, batch_size: int, seed: int) -> Loader:
    return Loader(
        split, batch_size, seed=seed, shuffle=True, augment=split.augment != "none", drop_last=len(split) >= batch_size
    )


def _whole(split: ImageSplit, rank: int, world: int) -> Loader:
    """Return all images in batches that leave no process without a share of the last one."""
    size = next(b for b in range(512, 0, -1) if not 0 < len(split) % (b * world) < world or b == 1)
    return Loader(split, size).sharded(rank, world)


def _evaluating(config: TrainConfig, batch_size: int, inputs: Inputs, evaluations: int) -> TrainConfig:
    if config.evaluate_every is not None:
        return config
    batches = max(1, max(len(inputs.source), len(inputs.target)) // batch_size)
    return replace(config, evaluate_every=max(1, config.total_steps(batches) // evaluations))


def _named(progress: Progress | None, name: str) -> Progress | None:
    if progress is None:
        return None
    return lambda done, total, note: progress(done, total, f"{name}: {note}")
