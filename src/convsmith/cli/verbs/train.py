"""``convsmith train``: train a classifier, with second-order pooling if asked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.cli.shell import classifier, data_options, evaluation, run_folder, terminal, train_options
from convsmith.cli.shell.options import option
from convsmith.cli.shell.progress import progress
from convsmith.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import nn

    from convsmith.data import ImageData, ImageSplit, Loader
    from convsmith.models.storage import ModelRecipe
    from convsmith.training import ClassificationTask, FitResult, Task

#: processes of one launcher divide the work
SHARES_WORK = True

EXAMPLES = (
    "train --model cs_resnet20 --data digits --augment digits --epochs 20 --out runs/first",
    "train --preset train-digits --seed 1",
    "train --preset train-second-order --dry-run",
    "train --model resnet50 --pretrained --data photos --preset finetune",
    "train --model resnet50 --pretrained --data photos --preset linear-probe",
    "train --model resnet50 --pretrained --data photos --pooling isqrt-cov --lr 0.01",
    "train --out runs/first --resume",
)


@dataclass(frozen=True, kw_only=True)
class Arguments(
    classifier.ModelOptions, data_options.LoaderOptions, train_options.LoopOptions, train_options.AugmentOptions
):
    """Train a classifier, measure it on held-out images and write a run folder with weights, numbers and a report."""

    label_smoothing: float = option(0.0, "share of probability spread over all classes", metavar="X")
    freeze: tuple[str, ...] = option((), "submodules that do not train, or a number of stages", metavar="NAME")
    freeze_norm: bool = option(False, "keep the statistics of batch normalisation")
    grad_checkpointing: bool = option(False, "recompute activations in the backward pass, to save memory")
    teacher: str | None = option(None, "trained network to learn from: run folder or timm name", metavar="MODEL")
    distill: float | None = option(None, "weight of the teacher's loss (default: 0.5 with one)", metavar="X")
    temperature: float = option(4.0, "of the distillation", metavar="X")
    linear_probe: bool = option(False, "fit the classifier alone, on features computed once")
    dry_run: bool = option(False, "check everything, say what would be done, write nothing")


def run(arguments: Arguments) -> dict[str, Any]:
    """Check everything, train, evaluate, write."""
    run_folder.check("train", arguments)
    train_options.train_config(arguments)
    train_options.check_read(arguments)
    classifier.check(arguments)
    settings = train_options.transform_settings(arguments)
    if arguments.linear_probe:
        check_probe(arguments)
    shown = classifier.preprocessing_of(arguments)
    images = data_options.load(arguments, augment=arguments.augment, preprocessing=shown, **settings)
    if not images.classes:
        rule, hint = "training needs images with labels", "one sub-folder a class, or list:FILE"
        raise InvalidArgument(rule, argument="data", given=images.description.source, hint=hint)
    model, recipe = classifier.create(arguments, images.description)
    task = make_task(model, images, arguments)
    classifier.check_takes(model, images.train)
    counts = ", ".join(f"{count:,} {name}" for name, count in images.description.counts.items())
    parameters = sum(weight.numel() for weight in model.parameters())
    terminal.say(f"network {arguments.model}, {parameters:,} parameters", f"images  {arguments.data}: {counts}")
    loader = None if arguments.linear_probe else training_loader(images, arguments)
    if arguments.dry_run:
        return plan(loader, parameters, arguments)
    folder = run_folder.open_run("train", arguments)
    if loader is None:
        return conclude(fitted_head(model, images, arguments), recipe, images, None, arguments, folder)
    with run_folder.beginning(folder, arguments):
        result = fit(task, loader, images, arguments, folder)
    if result.interrupted:
        raise run_folder.Interrupted("train", folder, f"stopped after {result.steps} of {result.total_steps} updates")
    if not terminal.is_main_process():
        return {}
    return conclude(model, recipe, images, result, arguments, folder)


def check_probe(arguments: Arguments) -> None:
    """Refuse what a linear probe does not read: it sees every image once, as it is, and is solved, not stepped."""
    groups, others = ("optimisation", "record", "augmentation"), ("freeze", "teacher")
    own = [f for f in fields(arguments) if f.metadata["group"] in groups or f.name in others]
    given = [f.name for f in own if f.name != "weight_decay" and getattr(arguments, f.name) != f.default]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        rule, hint = "a linear probe is solved on images as they are", f"leave {flags} out; --weight-decay is read"
        raise InvalidArgument(rule, argument="--linear-probe", given=flags, hint=hint)
    if terminal.processes() > 1:
        rule, hint = "a linear probe is the work of one process", "start it once, without torchrun or accelerate launch"
        raise InvalidArgument(rule, argument="--linear-probe", given=f"{terminal.processes()} processes", hint=hint)


def make_task(model: Any, images: ImageData, arguments: Arguments) -> ClassificationTask:
    """Return the task: what is frozen, who teaches, how labels are smoothed."""
    from convsmith import training

    teacher = None
    if arguments.teacher is not None:
        try:
            loaded = classifier.load(arguments.teacher)
        except InvalidArgument as error:  # it speaks of a model, which here is another flag
            raise InvalidArgument(error.rule, argument="teacher", given=error.given, hint=error.hint) from error
        if loaded.classes is not None and loaded.classes != images.classes:
            given = f"{len(loaded.classes)} classes for {len(images.classes)}"
            raise InvalidArgument("a teacher has the classes of the data", argument="--teacher", given=given)
        own, ours = loaded.preprocessing, images.description
        if any(abs(a - b) > 0.05 for a, b in zip(own.mean + own.std, ours.mean + ours.std, strict=False)):
            terminal.complain(
                "warning", f"the teacher knows images of mean {own.mean} and std {own.std}, and gets others"
            )
        teacher = loaded.model
    still = training.freeze(model, arguments.freeze) if arguments.freeze else []
    if arguments.freeze_norm:
        still += training.norms(model)
    if arguments.grad_checkpointing:
        if not hasattr(model, "set_grad_checkpointing"):
            raise InvalidArgument("this network cannot recompute", argument="--grad-checkpointing")
        model.set_grad_checkpointing()
    weight = arguments.distill if arguments.distill is not None else 0.5 * (teacher is not None)
    return training.ClassificationTask(
        model, len(images.classes), arguments.label_smoothing, teacher, weight, arguments.temperature, still
    )


def fitted_head(model: nn.Module, images: ImageData, arguments: Arguments) -> nn.Module:
    """Return the network with its classifier fitted to features computed once."""
    from convsmith import data, training

    loader = data.Loader(images.train, arguments.batch_size, workers=arguments.num_workers)
    with progress("features") as callback:
        model = model.to(training.resolve_device(arguments.device))
        return training.linear_probe(
            model,
            loader,
            weight_decay=arguments.weight_decay,
            label_smoothing=arguments.label_smoothing,
            progress=callback,
        )


def plan(loader: Loader | None, parameters: int, arguments: Arguments) -> dict[str, Any]:
    """Say what a run would do; a linear probe has no updates and no loader."""
    steps = 0 if loader is None else train_options.train_config(arguments).total_steps(len(loader))
    folder = run_folder.check("train", arguments)
    if steps:
        terminal.say(f"updates {steps:,} of {arguments.batch_size * arguments.accumulate} images")
    terminal.say(f"run     {folder}")
    return {"run": str(folder), "steps": steps, "parameters": parameters}


def training_loader(images: ImageData, arguments: Arguments) -> Loader:
    """Return the batches of this process; an incomplete last batch is filled, and that is said."""
    from convsmith import data, training

    rank, world = training.rank_and_world()
    loader = data.Loader(
        images.train,
        arguments.batch_size,
        seed=arguments.seed,
        shuffle=True,
        augment=arguments.augment != "none",
        rank=rank,
        world=world,
        fill_last=True,
        workers=arguments.num_workers,
        mixup=train_options.mixup_settings(arguments, arguments.label_smoothing),
    )
    if loader.filled:
        among = f" of {world} processes" if world > 1 else ""
        terminal.say(f"epoch   every image once, {loader.filled} twice: the last batch{among} is filled")
    return loader


def fit(task: Task, loader: Loader, images: ImageData, arguments: Arguments, folder: Path) -> FitResult:
    """Run the loop under a bar."""
    from convsmith import data, training
    from convsmith.training.checkpoint import saved_steps

    validation = None
    if len(images.validation):
        validation = data.Loader(images.validation, arguments.batch_size, workers=arguments.num_workers)
    with progress("train") as callback:
        return training.fit(
            task,
            loader,
            train_options.train_config(arguments),
            validation=validation,
            out=folder,
            # killed before its first checkpoint a run has nothing to go on from: it begins again
            resume=arguments.resume and bool(saved_steps(folder)),
            progress=callback,
        )


def conclude(
    model: nn.Module,
    recipe: ModelRecipe,
    images: ImageData,
    result: FitResult | None,
    arguments: Arguments,
    folder: Path,
) -> dict[str, Any]:
    """Evaluate, and write the weights, ``result.json``, the report's sections and the report."""
    from convsmith.models.storage import save_model

    name, split = held_out(images)
    found = evaluation.evaluate(model, split, name, arguments)
    save_model(folder, model, recipe)
    parameters = sum(weight.numel() for weight in model.parameters())
    lead, trained = "Its classifier was fitted to features computed once.", {}
    if result is not None:
        lead = f"Trained for {result.steps} updates in {result.seconds:.0f} s on {result.device}, {result.precision}."
        trained = {
            "steps": result.steps,
            "best_step": result.best_step,
            "best_validation_accuracy": result.best_value,
            "seconds": result.seconds,
            "stopped_early": result.stopped_early,
        }
    summary = {
        "title": f"{arguments.model} on {images.description.name}",
        "lead": [lead],
        "headline": {**evaluation.headline(found), "parameters": parameters},
        "split": name,
        "metrics": found.metrics.to_json(),
        "training": trained,
        "parameters": parameters,
        "seed": arguments.seed,
    }
    evaluation.write_sections(found, folder)
    evaluation.show(found)
    return run_folder.conclude(folder, summary)


def held_out(images: ImageData) -> tuple[str, ImageSplit]:
    """Return the test split, or the validation split where a data set has no labelled test images."""
    for name in ("test", "validation"):
        split = images.splits[name]
        if len(split) and bool((split.labels >= 0).all()):
            return name, split
    rule = "there are no labelled held-out images"
    raise InvalidArgument(rule, argument="test or validation images", given=images.description.name)
