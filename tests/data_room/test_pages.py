"""The examples on the docs pages run."""

import re
import tempfile
from pathlib import Path

import pytest

from convsmith.data import AUGMENTATIONS, SOURCES

PAGES = sorted((Path(__file__).parents[2] / "docs" / "data").glob("*.md"))
EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{n}")
    for page in PAGES
    for n, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


def test_there_are_pages_with_examples():
    assert {page.stem for page in PAGES} >= {"loading", "folders", "loader", "domains"}
    assert len(EXAMPLES) >= 5


@pytest.mark.parametrize("block", EXAMPLES)
def test_an_example_runs(block, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    for registry in (AUGMENTATIONS, SOURCES):
        registry.names()  # the room is read before, so that only the example is forgotten
        monkeypatch.setattr(registry, "_entries", dict(registry._entries))
    exec(compile(block, "example", "exec"), {"__name__": "example"})
    assert capsys.readouterr().err == ""
