"""``convsmith evaluate``: measure a trained model: accuracy, calibration, intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from convsmith.cli.shell import classifier, data_options, evaluation, run_folder, terminal
from convsmith.cli.shell.options import option
from convsmith.errors import InvalidArgument

#: processes of one launcher divide the work
SHARES_WORK = True

EXAMPLES = (
    "evaluate runs/first --data digits",
    "evaluate resnet50 --data photos --split validation --out runs/check --json",
    "evaluate --checkpoint runs/first/model.safetensors --data digits --device cuda",
)


@dataclass(frozen=True, kw_only=True)
class Arguments(data_options.LoaderOptions):
    """Measure a trained model: accuracy, accuracy of classes, calibration, each with a 95 % interval."""

    model: str | None = option(
        None, "run folder, weights file, timm name (its published weights), hf-hub:ID", metavar="MODEL", positional=True
    )
    checkpoint: str | None = option(None, "the same as MODEL", metavar="RUN_OR_FILE")
    weights: str | None = option(None, "weights for MODEL: .safetensors or .pth", metavar="FILE")
    split: Literal["train", "validation", "test"] = option("test", "which images")
    out: str | None = option(None, "also write a run folder with result and report", metavar="DIR", group="common")


def run(arguments: Arguments) -> dict[str, Any]:
    """Load, measure, print; write a run folder if asked."""
    if arguments.out is not None:
        run_folder.check("evaluate", arguments)
    model = arguments.model or arguments.checkpoint
    if model is None or (arguments.model and arguments.checkpoint):
        raise InvalidArgument("one model is evaluated", argument="MODEL", hint="evaluate MODEL --data DATA")
    from convsmith.training import rank_and_world, resolve_device

    resolve_device(arguments.device)
    loaded = classifier.load(model, weights=arguments.weights)
    images = data_options.load(arguments, like=classifier.trained_on(loaded))
    split = images.splits[arguments.split]
    if not len(split) or bool((split.labels < 0).any()):
        given = f"{len(split)} images, {int((split.labels < 0).sum())} without label"
        raise InvalidArgument("the split has no labelled images", argument=f"--split {arguments.split}", given=given)
    classifier.check_takes(loaded.model, split)
    found = evaluation.evaluate(loaded.model, split, arguments.split, arguments, rank_and_world())
    if not terminal.is_main_process():
        return {}
    evaluation.show(found)
    summary = {
        "title": f"{model} on {images.description.name}",
        "headline": evaluation.headline(found),
        "split": arguments.split,
        "metrics": found.metrics.to_json(),
    }
    if arguments.out is None:
        return summary
    folder = run_folder.open_run("evaluate", arguments)
    evaluation.write_sections(found, folder)
    return run_folder.conclude(folder, summary)
