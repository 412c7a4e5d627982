"""``convsmith explain``: find the channels that carried each prediction."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from convsmith.cli.shell import classifier, data_options, environment, run_folder, terminal
from convsmith.cli.shell.options import option
from convsmith.cli.shell.progress import progress
from convsmith.errors import InvalidArgument

if TYPE_CHECKING:
    from torch import Tensor

    from convsmith.cli.reports.explain_report import Explained
    from convsmith.data import DataDescription, ImageData, ImageSplit
    from convsmith.interpretation import Routes

#: processes of one launcher divide the search of ``--save``
SHARES_WORK = True

EXAMPLES = (
    "explain runs/first photo.png other.jpg --out runs/why",
    "explain runs/first --data digits --limit 8",
    "explain runs/first --data digits --limit 1000 --save routes.safetensors --show 0",
    "explain resnet18 photo.jpg --sites block --gamma 0.02",
)


@dataclass(frozen=True, kw_only=True)
class Arguments(classifier.TrainedOptions, data_options.DataOptions):
    """Find the critical routing path of every image and show it: gates, heat map, neighbours, removal curve."""

    image_files: tuple[str, ...] = option((), "image files or folders of them", metavar="IMAGE", positional=True)
    data: str = option(
        "", "images to explain; beside IMAGEs, where similar training images are looked for", metavar="DATA"
    )
    split: Literal["train", "validation", "test"] = option("test", "which images of DATA")
    sites: Literal["auto", "conv", "block", "activation"] = option("auto", "where gates sit")
    mode: Literal["converged", "paper"] = option("converged", "solver")
    gamma: float = option(0.05, "weight of the gates")
    allow_closed: bool = option(
        False, "as published, without a blank beside each image: biases may then make the prediction by themselves"
    )
    steps: int | None = option(
        None, "steps at most, beside a blank of two passes (default: 300, in paper mode 30)", metavar="N"
    )
    save: str | None = option(
        None, "also write all routes to this safetensors file; an interrupted run goes on", metavar="FILE"
    )
    batch_size: int = option(64, "images searched at a time", metavar="N", least=1)
    show: int = option(12, "images with a chapter of their own", metavar="N", least=0)
    neighbours: int = option(3, "similar training images to show (0: none)", metavar="N", least=0)
    reference: int = option(200, "training images among which they are looked for", metavar="N", least=1)


def run(arguments: Arguments) -> dict[str, Any]:
    """Load, search, print, save, write the page."""
    _check(arguments)
    run_folder.check("explain", arguments)
    from convsmith import interpretation
    from convsmith.cli.reports import explain_report, explain_save

    model, about, data = data_options.load_with_network(arguments)
    found = images_of(arguments, about, data, arguments.split, arguments.show)
    classifier.check_answers(model, found.images[:2], found.classes, arguments.model)
    settings: dict[str, Any] = {
        "sites": arguments.sites,
        "mode": arguments.mode,
        "gamma": arguments.gamma,
        "steps": arguments.steps,
        "seed": arguments.seed,
        "batch_size": arguments.batch_size,
        "open_layers": arguments.mode == "converged" and not arguments.allow_closed,
    }
    routes: Routes | None
    with progress("routes") as callback:
        if arguments.save is None:
            routes = interpretation.find_routes(model, found.images, labels=found.labels, progress=callback, **settings)
        else:
            routes = explain_save.find_and_save(arguments.save, model, found.images, found.labels, callback, settings)
    if routes is None:
        return {}
    folder = run_folder.open_run("explain", arguments)
    neighbours = None
    if data is not None and arguments.neighbours and arguments.show:
        neighbours = _neighbours(arguments, model, data, routes, settings)
    facts = explain_report.write(
        folder, model, found, routes, neighbours=neighbours, show=arguments.show, seed=arguments.seed
    )
    _print(found, routes)
    what = "one image" if len(routes) == 1 else f"{len(routes)} images"
    summary = {"title": f"Routes of {what} in {arguments.model}", "headline": facts}
    saved = {} if arguments.save is None else {"routes": arguments.save}
    notes = {found.names[row]: said for row in range(len(routes)) if (said := routes.messages(row))}
    return {**run_folder.conclude(folder, summary), **saved, "notes": notes}


def _check(arguments: Arguments) -> None:
    if arguments.save is None and terminal.processes() > 1:
        rule, hint = "several processes share the search of --save only", "add --save FILE, or start it once"
        raise InvalidArgument(rule, argument="explain", given=f"{terminal.processes()} processes", hint=hint)
    if arguments.save is not None:
        _check_place(Path(arguments.save), arguments.out)
    if not arguments.image_files and not arguments.data:
        hint = "name images, or add --data DATA"
        raise InvalidArgument("there is nothing to explain", argument="explain MODEL", hint=hint)
    similar = (arguments.data, "--data DATA")
    where = {
        "--split": (not arguments.image_files, "--data DATA alone"),
        "--neighbours": similar,
        "--reference": similar,
    }
    environment.refuse_unread(where)
    from convsmith.data import image_files

    image_files(arguments.image_files)  # a missing one is named before any network is looked for
    if arguments.allow_closed and arguments.mode == "paper":
        rule = "the published schedule has no other way"
        raise InvalidArgument(rule, argument="--allow-closed --mode paper", hint="leave --allow-closed out")
    from convsmith.interpretation import RouteSettings

    RouteSettings(gamma=arguments.gamma, steps=arguments.steps, mode=arguments.mode)


def _check_place(file: Path, out: str | None) -> None:
    """Refuse a file that routes cannot be saved to: another's, or one inside of the run folder, which begins empty."""
    argument = f"--save {file}"
    if not file.name or file.is_dir():
        raise InvalidArgument("routes are saved to a file", argument=argument, hint="name a file in it")
    run_folder.check_writable(file.parent, argument)
    if out is not None and file.resolve().is_relative_to(Path(out).resolve()):
        hint = "a place beside --out"
        raise InvalidArgument("the run folder is made when the routes are saved", argument=argument, hint=hint)
    if file.exists():
        from convsmith.interpretation.routes import saved_index

        try:
            saved_index(file)
        except InvalidArgument as error:
            rule, hint = "only a file of routes is ever replaced", "name another file"
            raise InvalidArgument(rule, argument=argument, given=error.rule, hint=hint) from None


def images_of(arguments: Any, about: DataDescription, data: ImageData | None, name: str, shown: int) -> Explained:
    """Read the images of a command as the model takes them, ``shown`` also to look at.

    They are its files (folders are searched), or where it names none the split ``name`` of its data.
    """
    if data is not None and not arguments.image_files:
        return _of_split(data.splits[name], name, shown)
    from convsmith.cli.reports.explain_report import Explained
    from convsmith.data import from_files, image_files
    from convsmith.report.figures import PIXELS, SIDE

    files = list(dict.fromkeys(image_files(arguments.image_files)))[: arguments.limit]
    if arguments.channels not in (None, about.channels):
        raise InvalidArgument(f"the network takes {about.channels}", argument="--channels", given=arguments.channels)
    sides = about.size if arguments.size is None else (arguments.size, arguments.size)
    seen = replace(about.preprocessing, input_size=(about.channels, *sides))
    split, broken = from_files(files, seen, broken=arguments.broken)
    for file in broken:
        terminal.complain("warning", f"skipped a broken image: {file}")
    larger = -(-SIDE // max(sides)) if max(sides) > PIXELS else 1
    big = replace(about.preprocessing, input_size=(about.channels, larger * sides[0], larger * sides[1]))
    pixels = replace(split, description=split.description.seen_through(big)).pixels(slice(shown))
    chosen = [files[number] for number in split.index.tolist()]
    known = Counter(file.name for file in chosen)
    names = tuple(file.name if known[file.name] == 1 else str(file) for file in chosen)
    return Explained(split.fetch(slice(None)).images, pixels, names, split.labels, tuple(about.classes))


def _of_split(split: ImageSplit, name: str, shown: int) -> Explained:
    from convsmith.cli.reports.explain_report import Explained

    if not len(split):
        rule = "the split has no images"
        raise InvalidArgument(rule, argument=f"--split {name}", given=split.description.source)
    batch = split.fetch(slice(None))
    names = tuple(f"{name} image {int(i)}" for i in batch.index)
    return Explained(batch.images, split.pixels(slice(shown)), names, batch.labels, tuple(split.classes))


def _neighbours(
    arguments: Arguments, model: Any, data: ImageData, routes: Routes, settings: dict[str, Any]
) -> tuple[Tensor, Tensor, Tensor] | None:
    """Return images of the nearest training images [B, n, C, H, W], their labels and similarities [B, n]."""
    from convsmith.interpretation import find_routes, nearest_routes

    if not len(data.train):
        return None
    chosen = data.train.drawn(arguments.reference, arguments.seed)
    batch = chosen.fetch(slice(None))
    with progress("routes of training images") as callback:
        pool = find_routes(model, batch.images, labels=batch.labels, progress=callback, **settings)
    trained = arguments.split == "train" and not arguments.image_files  # then an image is its own nearest neighbour
    count = min(arguments.neighbours, len(pool) - trained)
    if not count:
        return None
    place, value = (found.cpu() for found in nearest_routes(routes[: arguments.show], pool, count + trained))
    if trained:
        own = chosen.index[place] == data.train.index[: len(place), None]
        others = own.byte().argsort(dim=1, stable=True)[:, :count]
        place, value = place.gather(1, others), value.gather(1, others)
    pixels = chosen.pixels(place.flatten()).unflatten(0, tuple(place.shape))
    return pixels, batch.labels[place], value


def _print(found: Explained, routes: Routes) -> None:
    rows, shares = [], routes.sparsity()
    for row in range(min(len(routes), 20)):
        label = int(routes.prediction[row])
        name = found.classes[label] if found.classes else str(label)
        share = float(shares[row])
        notes = "; ".join(routes.messages(row))
        rows.append([found.names[row], name, float(routes.confidence[row]), 100 * share, notes])
    terminal.table(["image", "prediction", "confidence", "critical nodes, %", "notes"], rows)
    if len(routes) > len(rows):
        terminal.say(f"... and {len(routes) - len(rows)} more")
