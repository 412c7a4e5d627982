"""Every block of Python on the pages runs as it stands, block after block.

Those of the guides and of the README run with their commands (``test_guides.py``, ``test_commands.py``).
"""

import re
import tempfile
from pathlib import Path

import pytest

from convsmith.data import AUGMENTATIONS, SOURCES

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
BLOCKS = {
    page: blocks
    for page in sorted(DOCS.rglob("*.md"))
    if page.parent.name != "guides"
    and (blocks := re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE))
}


def test_there_are_pages_with_examples():
    assert len(BLOCKS) > 60
    for room in ("inspection", "data", "training"):
        assert not {p.name for p in (DOCS / room).glob("*.md")} - {p.name for p in BLOCKS} - {"pretrained.md"}


#: half a minute on two cores
LONG = ("docs/interpretation/detector.md",)


@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, id=name, marks=[pytest.mark.slow] * (name in LONG))
        for page in BLOCKS
        for name in [str(page.relative_to(ROOT))]
    ],
)
def test_the_examples_of_a_page_run(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for registry in (AUGMENTATIONS, SOURCES):  # what a page registers is forgotten after it
        registry.names()
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    names = {"__name__": "example"}
    for block in BLOCKS[page]:
        exec(compile(block, page.name, "exec"), names)
