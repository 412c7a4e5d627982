"""``convsmith init``: write an editable settings file."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.cli.shell import run_folder, settings, terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.files import write_text

EXAMPLES = ("init", "init train-digits", "init train-digits --file my.yaml")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Write an editable settings file from a packaged preset; without a name, list the presets."""

    preset: str | None = option(None, "which preset; none lists them", metavar="PRESET", positional=True)
    file: str | None = option(None, "file to write (default: PRESET.yaml here)", metavar="FILE")


def run(arguments: Arguments) -> dict[str, Any]:
    """List the presets, or copy one."""
    if arguments.preset is None:
        known = settings.presets()
        terminal.table(("preset", "what it is for"), [(name, purpose(text)) for name, text in known.items()])
        return {"presets": list(known)}
    text = settings.preset_text(None, arguments.preset)
    target = Path(arguments.file or f"{arguments.preset}.yaml")
    run_folder.new_file(target, "--file", "name another with --file")
    named = shlex.quote(str(target))
    write_text(target, text.replace(f"{arguments.preset}.yaml", named))
    terminal.say(f"wrote {target}", f"convsmith {text.split()[2]} --config {named}")
    return {"file": str(target)}


def purpose(text: str) -> str:
    """Return the second comment line of a preset, which says what it is for."""
    comments = [line[2:] for line in text.splitlines() if line.startswith("# ")]
    return comments[1] if len(comments) > 1 else ""
