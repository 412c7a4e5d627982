"""Adapt a classifier from a labelled source to an unlabelled target, with the training loop, a validator and alarms."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from convsmith import arguments
from convsmith.adaptation.evaluation.calibration import calibrated
from convsmith.adaptation.evaluation.evaluator import EXCLUDED, EvaluationOptions, Evaluator, finite_features
from convsmith.adaptation.inputs import InputOptions, Inputs, resolve, rows_at_once
from convsmith.adaptation.methods.method import (
    METHODS,
    Domains,
    DomainTask,
    MethodConfig,
    method_settings,
    source_only_settings,
)
from convsmith.adaptation.result import AdaptationResult, Reference
from convsmith.data import DomainLoader, ImageSplit, Loader
from convsmith.errors import InvalidArgument, close_matches, refusing
from convsmith.inspection.features import classifier_of, extract_features, new_head
from convsmith.inspection.modes import copied, unwrap
from convsmith.training import FitResult, TrainConfig, fit, rank_and_world
from convsmith.training.checkpoint import saved_steps

Progress = Callable[[int, int, str], None]


@arguments.checked
def adapt(
    model: nn.Module | str,
    source: Any,
    target: Any = None,
    *,
    method: str = "san",
    settings: MethodConfig | None = None,
    validator: str | None = None,
    steps: int | None = None,
    lr: float | None = None,
    seed: int | None = None,
    device: str | None = None,
    batch_size: int = 64,
    config: TrainConfig | None = None,
    data: InputOptions | None = None,
    evaluation: EvaluationOptions | None = None,
    reference: Reference | AdaptationResult | str | None = "train",
    out: Path | str | None = None,
    resume: bool = False,
    progress: Progress | None = None,
    **options: Any,
) -> AdaptationResult:
    """Train ``model`` on a labelled source so that it works on an unlabelled target with the same or fewer classes.

    Args:
        model: a classifier whose logits come from a linear layer, or a timm name; it is copied. A classifier of another
            number of classes is given a new last layer, which ``warnings`` say.
        source: labelled images; see `convsmith.adaptation.inputs.resolve` for every form, or its result.
        target: images whose labels, if they have any, are not looked at.
        method: one of `available()`.
        settings: of the method, as a whole; single ones are keywords (``entropy=0.2``, ``inverse_temperature=10``).
        validator: choose the step by this score (see `EvaluationOptions`).
        steps: updates, 1000 if not given; the same for source-only, which is trained too.
        lr: base learning rate, 0.03 if not given; the schedule is ``(1 + 10 t / steps) ** -0.75`` as in this line of
            papers.
        seed: of weights added, order and dropout; 0 if not given.
        device: where to train; ``"auto"`` if not given.
        batch_size: images of each domain in a step, two or more.
        config: a whole training configuration in place of the four above.
        data: how specs and folders are read, as a whole; single fields of `InputOptions` are keywords (``size=224``).
        evaluation: how the run is judged, as a whole; single fields of `EvaluationOptions` are keywords
            (``num_evals=4``).
        reference: ``"train"`` trains source-only first; an earlier source-only result saves that; None does without
            the guard and without both alarms that need it.
        out: run folder for checkpoints and history (source-only's under ``reference/``).
        resume: continue both from their latest checkpoints in ``out``.
        progress: called with steps done, steps in all and a note.
        options: single fields of ``data``, ``evaluation`` and the method's settings; they change what a group says.

    Raises:
        InvalidArgument: for every name, number or data set that cannot work, before training.

    Examples:
        >>> result = adapt("cs_lenet", "mnist-5k", "digits", size=16, method="dann", steps=2, reference=None)
        >>> network, warnings = result.model, result.warnings
    """
    given = dict(options) if validator is None else {**options, "validator": validator}
    data, evaluation = _filled(InputOptions, data, given), _filled(EvaluationOptions, evaluation, given)
    chosen = method_settings(method, given, settings)
    arguments.integer("batch_size", batch_size, least=2)
    config = _configured(config, {"steps": steps, "lr": lr, "seed": seed, "device": device})
    if isinstance(source, Inputs) and (target is not None or data != InputOptions()):
        rule, hint = "both domains are read already", "give what `resolve` takes to it"
        raise InvalidArgument(rule, argument="target, data", hint=hint)
    inputs = source if isinstance(source, Inputs) else resolve(source, target, data, seed=config.seed)
    if evaluation.use_target_labels and not bool((inputs.target_labels >= 0).all()):
        raise InvalidArgument("the target has no labels to evaluate on", argument="use_target_labels")
    batch_size = max(2, min(batch_size, len(inputs.source), len(inputs.target)))
    network, notes = built(model, inputs, config.seed)
    seen = set(inputs.source.labels.tolist())
    absent = ", ".join(name for number, name in enumerate(inputs.classes) if number not in seen)
    if absent:
        notes = (*notes, f"the source has no image of {absent}: nothing is learned of it")
    _check_model(network, inputs)
    folder = None if out is None else Path(out)
    if config.evaluate_every is None:
        batches = math.ceil(max(len(inputs.source), len(inputs.target)) / batch_size)
        every = max(1, config.total_steps(batches) // evaluation.num_evals)
        config = replace(config, evaluate_every=every)
    train = partial(_train, network, inputs, config, batch_size, evaluation, notes, progress, resume)
    if reference == "train":
        reference = None
        if method != "source-only":
            reference = train("source-only", source_only_settings(chosen), folder and folder / "reference", None)
            if reference.interrupted:
                return reference
    return train(method, chosen, folder, _known(reference, inputs))


def _filled(kind: Any, whole: Any, given: dict[str, Any]) -> Any:
    """Return the group ``whole`` (the default one if None) with those of ``given`` that are its fields, taken out."""
    own = {f.name: given.pop(f.name) for f in fields(kind) if f.name in given}
    return replace(whole, **own) if whole is not None else kind(**own)


def _configured(config: TrainConfig | None, single: dict[str, Any]) -> TrainConfig:
    """Return the training configuration; single values beside a whole one are refused, not ignored."""
    said = {name: value for name, value in single.items() if value is not None}
    if config is None:
        steps = arguments.integer("steps", said.get("steps", 1000), least=1)
        usual = {"steps": steps, "lr": 0.03, "schedule": "inverse", "gamma": 10 / steps, "nesterov": False}
        return TrainConfig(**{**usual, **said})
    if said:
        argument, hint = ", ".join(said), "dataclasses.replace(config, ...) or leave config out"
        raise InvalidArgument("a whole training configuration holds these already", argument=argument, hint=hint)
    return config


def built(model: nn.Module | str, inputs: Inputs, seed: int) -> tuple[nn.Module, tuple[str, ...]]:
    """Return ``model`` with one logit per source class, and notes on what was changed.

    A name is built by timm, drawn by ``seed``. A module with another number of classes is copied and its last layer
    made anew, drawn by ``seed``: what it knew about its own classes is left out.
    """
    classes = len(inputs.classes)
    if isinstance(model, str):
        import timm

        if ":" not in model and not timm.is_model(model):
            rule, hint = "no model has this name", close_matches(model, timm.list_models())
            raise InvalidArgument(rule, argument="model", given=repr(model), hint=hint)
        channels = inputs.source.description.channels
        refused = refusing("timm cannot build this model", RuntimeError, argument=f"model {model!r}")
        with refused, torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return timm.create_model(model, num_classes=classes, in_chans=channels), ()
    model = unwrap(model)  # a compiled module does not call hooks added later
    before = classifier_of(model).out_features
    if before == classes:
        return model, ()
    own = copied(model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        new_head(own, classes)
    return own, (
        f"the classifier is new: {classes} source classes where the network had {before}; with pretrained weights "
        "head_lr_mult=10 is usual",
    )


def _check_model(model: nn.Module, inputs: Inputs) -> None:
    """Refuse a model that does not take the images, gives other logits than one per class, or gives NaN."""
    batch = inputs.source.fetch(range(min(2, len(inputs.source))))
    errors = (RuntimeError, ValueError, TypeError, IndexError, AssertionError, AttributeError)
    argument = f"images {tuple(batch.images.shape[1:])}"
    with refusing("the model does not take these images", *errors, argument=argument):
        seen = extract_features(model, [batch])
    if seen.logits.shape[1] != len(inputs.classes):
        given = f"{seen.logits.shape[1]} logits for {len(inputs.classes)} classes"
        raise InvalidArgument("the model gives one logit per source class", argument="model", given=given)
    if not bool(torch.isfinite(seen.features).all() & torch.isfinite(seen.logits).all()):
        raise InvalidArgument("the model's features are not finite before training", given="NaN or infinity")


def _train(
    model: nn.Module,
    inputs: Inputs,
    config: TrainConfig,
    batch_size: int,
    evaluation: EvaluationOptions,
    notes: tuple[str, ...],
    progress: Progress | None,
    resume: bool,
    method: str,
    settings: MethodConfig,
    out: Path | None,
    reference: Reference | None,
) -> AdaptationResult:
    """Train one method from ``model``'s weights and say everything about what came out."""
    rank, world = rank_and_world()
    paired = (
        Loader(s, batch_size, config.seed, True, s.augment != "none", fill_last=True, workers=inputs.workers)
        for s in (inputs.source, inputs.target)
    )
    loader = DomainLoader(*paired).sharded(rank, world)
    steps = config.total_steps(len(loader))
    domains = Domains(inputs.batches(inputs.source), _whole(inputs.target, rank, world), len(inputs.classes), steps)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        task: DomainTask = METHODS[method](copied(model), domains, settings)
    like = next(p for p in task.model.parameters() if p.is_floating_point())
    for name, beside in task.named_children():
        if name != "model":
            beside.to(like.dtype)
    task.evaluator = evaluator = Evaluator(
        target=inputs.batches(inputs.target),
        source_training=inputs.batches(inputs.source),
        options=evaluation,
        reference=reference,
        target_labels=inputs.target_labels if evaluation.use_target_labels else None,
    )
    held_out = inputs.batches(inputs.validation)
    restore = "best" if evaluation.validator is not None else "last"
    fitted: FitResult = fit(
        task,
        loader,
        replace(config, restore=restore),
        validation=held_out,
        out=out,
        resume=resume and (out is None or bool(saved_steps(out))),
        progress=None
        if progress is None
        else lambda done, total, note: progress(done, total, f"{method}: {note}" if note else method),
    )
    trained = time.perf_counter()
    source, target = finite_features(task.model, held_out), finite_features(task.model, evaluator.target)
    found = evaluator.compute_metrics(task.model, source, target)
    selected = fitted.steps
    if evaluation.validator is not None and fitted.best_step is not None and not fitted.interrupted:
        selected = fitted.best_step
    weights = task.class_weights()
    alarms = evaluator.alarms(target.logits.softmax(1), found)
    warnings = list(notes)
    if evaluation.validator is not None and fitted.best_value is not None and fitted.best_value <= EXCLUDED:
        warnings.append(
            "no step passed the guard (source accuracy below 0.9 of source-only's); the first step measured was kept"
        )
    if evaluation.validator == "oracle":
        warnings.append("the step was chosen with target labels (oracle)")
    return AdaptationResult(
        model=task.model.eval(),
        method=method,
        settings=settings,
        class_weights=None if weights is None else weights.detach().cpu().clone(),
        history=fitted.history,
        selected_step=selected,
        steps=fitted.steps,
        validator=evaluation.validator,
        measurements=found,
        predictions=calibrated(task.model, inputs, source, target),
        alarms=alarms,
        warnings=(*warnings, *(f"{alarm.kind}: {alarm.message}" for alarm in alarms)),
        reference=reference,
        classes=inputs.classes,
        seconds=round(fitted.seconds + time.perf_counter() - trained, 3),
        interrupted=fitted.interrupted,
    )


def _known(reference: Any, inputs: Inputs) -> Reference | None:
    """Return what the guard and both alarms compare with; refuse what is of another method, target or classes."""
    if reference is None:
        return None
    if isinstance(reference, AdaptationResult) and reference.method == "source-only":
        reference = Reference(reference.predictions.probabilities, reference.measurements)
    if not isinstance(reference, Reference):
        rule = "a reference is 'train', an earlier source-only result, or None"
        given = getattr(reference, "method", arguments.spelled(reference))
        raise InvalidArgument(rule, argument="reference", given=given)
    wanted, shape = (len(inputs.target), len(inputs.classes)), tuple(reference.probabilities.shape)
    if shape != wanted:
        rule = "the reference was made for another target or other classes"
        raise InvalidArgument(rule, argument=f"probabilities {wanted}", given=shape)
    return reference


def _whole(split: ImageSplit, rank: int, world: int) -> Loader:
    """Return all images in batches that leave no process without a share of the last one."""
    size = next(b for b in range(rows_at_once(split), 0, -1) if not 0 < len(split) % (b * world) < world or b == 1)
    return Loader(split, size).sharded(rank, world)
