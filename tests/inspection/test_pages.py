"""The examples on the docs pages run as they stand."""

import re
from pathlib import Path

import pytest

PAGES = sorted((Path(__file__).parents[2] / "docs" / "inspection").glob("*.md"))
EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{n}")
    for page in PAGES
    for n, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


def test_every_page_has_an_example():
    assert len(EXAMPLES) >= len(PAGES) >= 6


@pytest.mark.parametrize("block", EXAMPLES)
def test_an_example_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "example", "exec"), {"__name__": "example"})
