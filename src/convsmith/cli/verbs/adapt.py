"""``convsmith adapt``: carry a labelled source over to an unlabelled target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import classifier, data_options, run_folder, terminal
from convsmith.cli.shell.data_options import image_option
from convsmith.cli.shell.options import MOST_PIXELS, Work, option
from convsmith.cli.shell.progress import progress
from convsmith.registry import setting_types

if TYPE_CHECKING:
    from convsmith.adaptation import AdaptationResult
    from convsmith.adaptation.inputs import Inputs

#: processes of one launcher divide the work
SHARES_WORK = True

EXAMPLES = (
    "adapt --source mnist-5k --target digits --target-classes 0-4 --size 16 --model cs_lenet --use-target-labels",
    "adapt --source imagefolder:catalogue --target images:photos --model resnet50 --pretrained --size 224 --lr 0.001",
    "adapt --source list:train.txt --target imagefolder:shop --model runs/first --method pada --set grl_max=0.5",
    "adapt --out runs/adapt-1 --resume",
)


@dataclass(frozen=True, kw_only=True)
class Arguments(classifier.ModelOptions, data_options.BatchOptions, Work):
    """Adapt a network to images without labels that show some of the source's classes; predict every one of them.

    Source-only is trained first, with the same recipe: it is what the alarms compare with.
    """

    source: str = option(help="labelled images: DATA, a folder of class folders, or a list file", metavar="DATA")
    target: str = option(help="images to adapt to, labels unused: DATA or a folder", metavar="DATA")
    method: str = option("san", "see methods 'adaptation method'", metavar="NAME")
    target_classes: str | None = option(
        None, "keep only these classes of a labelled target: 0-4, cat,dog, first-5, random-5@1", metavar="SPEC"
    )
    validator: str | None = option(
        None, "choose the step by this score instead of keeping the last; see methods validator", metavar="NAME"
    )
    set: tuple[str, ...] = option((), "settings of the method, like entropy=0.2", metavar="NAME=VALUE")
    use_target_labels: bool = option(
        False, "measure accuracy on the target's labels, if it has any; --validator oracle alone selects by them"
    )
    reference: bool = option(True, "train source-only too, for the guard and the alarms")
    num_evals: int = option(10, "how often source and target are measured in a run", metavar="N")
    steps: int = option(1000, "updates", metavar="N")
    lr: float = option(0.03, "base learning rate", metavar="X")
    batch_size: int = option(64, "images of each domain in a step (and process)", metavar="N")
    augment: str = image_option("none", "random changes of training images; see methods augmentation", metavar="NAME")
    size: int | None = image_option(
        None,
        "side of the images in pixels (default: the network's, or the smaller of both)",
        metavar="N",
        most=MOST_PIXELS,
    )
    channels: int | None = image_option(None, "1 or 3 (default: the source's)", metavar="1|3")
    crop: tuple[int, int] = image_option((0, 0), "cut source and target around their ink to so many pixels; 0 does not")


def run(arguments: Arguments) -> dict[str, Any]:
    """Check everything, train source-only and the method, predict, write."""
    run_folder.check("adapt", arguments)
    classifier.check(arguments)
    settings = _settings(arguments)
    from convsmith import adaptation, training
    from convsmith.adaptation.inputs import resolve

    adaptation.method_settings(arguments.method, settings)
    evaluation = adaptation.EvaluationOptions(
        validator=arguments.validator, num_evals=arguments.num_evals, use_target_labels=arguments.use_target_labels
    )
    options = adaptation.InputOptions(
        target_classes=arguments.target_classes,
        size=arguments.size,
        channels=arguments.channels,
        crop=(arguments.crop[0] or None, arguments.crop[1] or None),
        preprocessing=classifier.preprocessing_of(arguments),
        augment=arguments.augment,
        workers=arguments.num_workers,
    )
    training.resolve_device(arguments.device)
    config = training.TrainConfig(
        steps=arguments.steps,
        lr=arguments.lr,
        schedule="inverse",
        gamma=10 / max(1, arguments.steps),
        nesterov=False,
        seed=arguments.seed,
        device=arguments.device,
    )
    inputs = resolve(arguments.source, arguments.target, options, seed=arguments.seed)
    model, recipe = classifier.create(arguments, inputs.source.description)
    classifier.check_takes(model, inputs.source)
    folder = run_folder.open_run("adapt", arguments)
    with progress("adapt") as callback:
        result = adaptation.adapt(
            model,
            inputs,
            method=arguments.method,
            batch_size=arguments.batch_size,
            config=config,
            evaluation=evaluation,
            reference="train" if arguments.reference else None,
            out=folder,
            resume=arguments.resume,
            progress=callback,
            **settings,
        )
    if result.interrupted:
        raise run_folder.Interrupted("adapt", folder, f"stopped after {result.steps} updates of {result.method}")
    if not terminal.is_main_process():
        return {}
    from convsmith.models.storage import save_model

    save_model(folder, result.model, recipe)
    return conclude(result, inputs, arguments, folder)


def _settings(arguments: Arguments) -> dict[str, Any]:
    from convsmith.adaptation import METHODS
    from convsmith.cli.shell.method_settings import method_settings

    traits = METHODS.entry(arguments.method).traits
    named = {group: Literal[tuple(known)] for group, known in traits.get("named", {}).items()}
    own = {**setting_types(traits["settings"]()), **named}
    return method_settings(arguments.set, {arguments.method: own})[arguments.method]


def conclude(result: AdaptationResult, inputs: Inputs, arguments: Arguments, folder: Path) -> dict[str, Any]:
    """Write predictions, ``result.json``, the report's sections and the report; print what matters."""
    from convsmith.cli.reports.adaptation_report import sections

    predictions = result.predictions.save(folder / "predictions.csv")
    base = {} if result.reference is None else dict(result.reference.measurements)
    headline: dict[str, Any] = {"method": result.method, "target images": len(result.predictions.index)}
    for name, found, key in (
        ("target accuracy (oracle), %", result.measurements, "oracle_accuracy"),
        ("source-only accuracy (oracle), %", base, "oracle_accuracy"),
        ("source accuracy, %", result.measurements, "source_accuracy"),
    ):
        if key in found:
            headline[name] = round(100 * found[key], 2)
    headline["alarms"] = len(result.alarms)
    weights = None
    if result.class_weights is not None:
        weights = {name: round(float(w), 4) for name, w in zip(result.classes, result.class_weights, strict=True)}
    summary = {
        "title": f"{arguments.model} from {arguments.source} to {arguments.target}, {result.method}",
        "lead": [f"Trained for {result.steps} updates in {result.seconds:.0f} s; kept step {result.selected_step}."],
        "headline": headline,
        "measurements": result.measurements,
        "reference": base or None,
        "selected_step": result.selected_step,
        "validator": result.validator,
        "class_weights": weights,
        "temperature": result.predictions.temperature,
        "warnings": list(result.warnings),
        "seed": arguments.seed,
    }
    for name, section in sections(result, inputs).items():
        section.save(folder, name)
    terminal.table(("measured", "value"), list(headline.items()))
    for warning in result.warnings:
        terminal.complain("warning", warning)
    return run_folder.conclude(folder, summary, predictions=predictions)
