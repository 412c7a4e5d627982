"""``convsmith data``: list data sets, or describe one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from convsmith.cli.shell import data_options, terminal
from convsmith.cli.shell.options import MOST_SEED, option

EXAMPLES = ("data", "data digits", "data imagefolder:photos --size 224", "data digits --json")


@dataclass(frozen=True, kw_only=True)
class Arguments(data_options.ImageOptions):
    """List the data sets that DATA can name, or load one and describe it."""

    data: str | None = option(None, "which one; none lists them", metavar="DATA", positional=True)
    seed: int = option(0, "key of the division into train, validation and test", least=0, most=MOST_SEED)


def run(arguments: Arguments) -> dict[str, Any]:
    """Print names, or one description."""
    from convsmith import data
    from convsmith.data.pictures import shortened

    if arguments.data is None:
        known = dict(zip(data.available(), (entry.summary for entry in data.SOURCES), strict=True))
        terminal.table(("DATA", "what it is"), list(known.items()))
        return {"data": [{"spec": spec, "source": source} for spec, source in known.items()]}
    loaded = data_options.read(arguments)
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
    return {"description": about.to_json(), "skipped": [str(file.path) for file in loaded.skipped]}


def _by_class(loaded: Any) -> list[tuple[Any, ...]]:
    known = {name: split.labels[split.labels >= 0] for name, split in loaded.splits.items()}
    count = {name: labels.bincount(minlength=len(loaded.classes)) for name, labels in known.items()}
    shown = list(loaded.classes[:30])
    return [(name, *(int(found[number]) for found in count.values())) for number, name in enumerate(shown)]
