"""``convsmith evaluate``: measure a trained model: accuracy, calibration, intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import classifier, data_options, evaluation, run_folder, terminal
from convsmith.cli.shell.options import option
from convsmith.errors import InvalidArgument

if TYPE_CHECKING:
    from convsmith.data import DataDescription
    from convsmith.models.storage import LoadedModel

EXAMPLES = (
    "evaluate --checkpoint runs/first --data digits",
    "evaluate --checkpoint runs/first --data imagefolder:photos --split validation --out runs/check --json",
    "evaluate --checkpoint runs/first/model.safetensors --data digits --device cuda",
)


@dataclass(frozen=True, kw_only=True)
class Arguments(data_options.DataOptions):
    """Measure a trained model: accuracy, accuracy of classes, calibration, each with a 95 % interval."""

    checkpoint: str = option(
        help="run folder or weights file; a timm name takes its published weights", metavar="RUN_OR_FILE"
    )
    split: Literal["train", "validation", "test"] = option("test", "which images")
    out: str | None = option(None, "also write a run folder with result and report", metavar="DIR", group="common")


def run(arguments: Arguments) -> dict[str, Any]:
    """Load, measure, print; write a run folder if asked."""
    if arguments.out is not None:
        run_folder.check("evaluate", arguments)
    elif arguments.overwrite:
        raise InvalidArgument("there is nothing to overwrite", argument="--overwrite", hint="add --out DIR")
    data_options.check(arguments)
    from convsmith.training import resolve_device

    device = resolve_device(arguments.device)
    loaded = classifier.load(arguments.checkpoint)
    images = data_options.load(arguments, like=trained_on(loaded))
    split = images.splits[arguments.split]
    if not len(split) or bool((split.labels < 0).any()):
        given = f"{len(split)} images, {int((split.labels < 0).sum())} without label"
        raise InvalidArgument("the split has no labelled images", argument=f"--split {arguments.split}", given=given)
    classifier.check_takes(loaded.model, split)
    found = evaluation.evaluate(
        loaded.model,
        split,
        name=arguments.split,
        device=str(device),
        batch_size=arguments.batch_size,
        seed=arguments.seed,
    )
    evaluation.show(found)
    summary = {
        "title": f"{arguments.checkpoint} on {images.description.name}",
        "headline": evaluation.headline(found),
        "split": arguments.split,
        "metrics": found.metrics.to_json(),
    }
    if arguments.out is None:
        return summary
    from convsmith.report import build_report

    folder = run_folder.open_run("evaluate", arguments)
    run_folder.write_json(folder / "result.json", summary)
    evaluation.write_sections(found, folder)
    report = build_report([folder])
    terminal.say(f"run     {folder}", f"report  {report}")
    return {"run": str(folder), "report": str(report), **summary}


def trained_on(loaded: LoadedModel) -> DataDescription | None:
    """Return what is known of the images the model was trained on; timm tells size and normalisation, not classes."""
    from convsmith.data import DataDescription, Preprocessing

    if loaded.description is not None:
        return DataDescription.from_json(loaded.description)
    if not getattr(loaded.model, "pretrained_cfg", None):
        return None
    found = Preprocessing.from_model(loaded.model)
    return DataDescription(loaded.recipe.name, (), 1, (1, 1), (), ()).seen_through(found)
