"""Every command line in README and docs is one the parser accepts."""

import re
import shlex
from pathlib import Path

import pytest

from convsmith.cli import main
from convsmith.cli.shell import options

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "README.zh.md", *sorted((ROOT / "docs").rglob("*.md"))]
#: after the verb these words take the place of settings that are read from a file
FROM_FILE = {"--config", "--resume", "-h", "--help"}


def commands(page):
    """Yield the words after ``convsmith`` of every command in a fenced block, comments and pipes cut off."""
    for block in re.findall(r"^```[a-z]*\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            found = re.match(r"^(?:\$ )?(?:\S*/)?convsmith ([a-z].*)$", line.strip())
            if found:
                yield shlex.split(re.split(r" [|#>] ?| #", found.group(1))[0], comments=True)


@pytest.mark.parametrize("page", PAGES, ids=[str(page.relative_to(ROOT)) for page in PAGES])
def test_every_command_in_the_docs_parses(page):
    for words in commands(page):
        assert words[0] in main.Program().verbs()
        if FROM_FILE.isdisjoint(words):
            options.parse(words[0], main.Program().load(words[0]).Arguments, words[1:])


def test_commands_are_found():
    assert sum(1 for _ in commands(ROOT / "docs" / "cli.md")) >= 7
