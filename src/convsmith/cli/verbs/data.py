"""``convsmith data``: list data sets, or describe one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import MOST_PIXELS, Listing, option
from convsmith.cli.shell.progress import progress

EXAMPLES = ("data", "data digits", "data imagefolder:photos --size 224", "data digits --json")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """List the data sets that DATA can name, or load one and describe it."""

    data: str | None = option(None, "which one; none lists them", metavar="DATA", positional=True)
    size: int | None = option(
        None, "side of the images in pixels (default: their own)", metavar="PIXELS", most=MOST_PIXELS
    )
    channels: int | None = option(None, "1 or 3 (default: what the images have)", metavar="1|3")
    broken: Literal["refuse", "skip"] = option("refuse", "image files that cannot be read")
    data_root: str | None = option(None, "folder of downloaded data sets", metavar="DIR")
    seed: int = option(0, "key of the division into train, validation and test")


def run(arguments: Arguments) -> dict[str, Any]:
    """Print names, or one description."""
    from convsmith import data
    from convsmith.data.pictures import shortened

    if arguments.data is None:
        known = dict(zip(data.available(), (entry.summary for entry in data.SOURCES), strict=True))
        terminal.table(("DATA", "what it is"), list(known.items()))
        return {"data": [{"spec": spec, "source": source} for spec, source in known.items()]}
    with progress("read") as callback:
        loaded = data.load(
            arguments.data,
            size=arguments.size,
            channels=arguments.channels,
            seed=arguments.seed,
            broken=arguments.broken,
            root=arguments.data_root,
            progress=callback,
        )
    about = loaded.description
    terminal.say(
        f"name      {about.name}",
        f"source    {about.source}",
        f"images    {', '.join(f'{count:,} {split}' for split, count in about.counts.items())}",
        f"size      {about.size[0]} x {about.size[1]}, {about.channels} channel{'s' if about.channels > 1 else ''}",
        f"mean      {', '.join(f'{value:.4f}' for value in about.mean)}",
        f"std       {', '.join(f'{value:.4f}' for value in about.std)}",
        f"classes   {len(about.classes)}: {shortened(about.classes, 12)}",
    )
    terminal.table(("class", *loaded.splits), _by_class(loaded))
    for file in loaded.skipped:
        terminal.complain("warning", f"skipped a broken image: {file.path}: {file.reason}")
    terminal.say(*(f"note: {note}" for note in loaded.notes))
    return {"description": about.to_json(), "skipped": [str(file.path) for file in loaded.skipped]}


def _by_class(loaded: Any) -> list[tuple[Any, ...]]:
    known = {name: split.labels[split.labels >= 0] for name, split in loaded.splits.items()}
    count = {name: labels.bincount(minlength=len(loaded.classes)) for name, labels in known.items()}
    shown = list(loaded.classes[:30])
    return [(name, *(int(found[number]) for found in count.values())) for number, name in enumerate(shown)]
