"""``convsmith predict``: name what is on images: class, probability, runner-up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import classifier, data_options, evaluation, run_folder, terminal
from convsmith.cli.shell.options import option
from convsmith.errors import InvalidArgument

if TYPE_CHECKING:
    from convsmith.data import ImageSplit
    from convsmith.models import LoadedModel

#: processes of one launcher divide the work
SHARES_WORK = True

EXAMPLES = (
    "predict runs/first photo.jpg other.png",
    "predict resnet50 photos/ --out predictions.csv",
    "predict tf_efficientnet_lite0 photos/ --weights weights.pth --num-workers 2 --json",
)
COLUMNS = ("image", "class", "probability", "runner_up", "runner_up_probability")
SHOWN = 20


@dataclass(frozen=True, kw_only=True)
class Arguments(classifier.TrainedOptions, data_options.BatchOptions):
    """Predict the class of every image: its name and probability, and the second class with its own."""

    image_files: tuple[str, ...] = option(help="image files or folders of them", metavar="IMAGE", positional=True)
    out: str | None = option(None, "also write a table: FILE.csv", metavar="FILE", group="common")
    broken: Literal["refuse", "skip"] = option("refuse", "image files that cannot be read", group="images")


def run(arguments: Arguments) -> dict[str, Any]:
    """Load, predict, print; write the table if asked."""
    out = run_folder.table_file(arguments)
    from convsmith import data
    from convsmith.training import rank_and_world, resolve_device

    if not arguments.image_files:
        raise InvalidArgument("there is nothing to predict", argument="predict MODEL", hint="name images or folders")
    device = resolve_device(arguments.device)
    files = data.image_files(arguments.image_files)
    loaded = classifier.load(arguments.model, weights=arguments.weights, device=str(device))
    split, skipped = data.from_files(files, loaded.preprocessing, broken=arguments.broken)
    classifier.check_takes(loaded.model, split)
    logits, _ = evaluation.predict(loaded.model, split, "predict", arguments, rank_and_world())
    if not terminal.is_main_process():
        return {}
    rows = table(loaded, split, logits)
    for file in skipped:
        terminal.complain("warning", f"skipped a broken image: {file}")
    terminal.table(COLUMNS[:4], [row[:4] for row in rows[:SHOWN]])
    written = run_folder.write_table(out, COLUMNS, rows, shown=SHOWN)
    return {"out": written, "predictions": [dict(zip(COLUMNS, row, strict=True)) for row in rows]}


def table(loaded: LoadedModel, split: ImageSplit, logits: Any) -> list[tuple[str, str, float, str, float]]:
    """Return image, class, probability, runner-up and its probability of every image."""
    values, order = logits.softmax(1).sort(dim=1, descending=True, stable=True)
    found = []
    for number, (v, o) in enumerate(zip(values.tolist(), order.tolist(), strict=True)):
        second = (loaded.name_of(o[1]), v[1]) if len(o) > 1 else ("", 0.0)
        found.append((split.name(number), loaded.name_of(o[0]), v[0], *second))
    return found
