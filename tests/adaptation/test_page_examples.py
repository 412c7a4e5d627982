"""The examples on the docs pages run, and the pages name what exists."""

import re
from pathlib import Path

import pytest

from convsmith.adaptation import available
from convsmith.adaptation.evaluation import validators

FOLDER = Path(__file__).parents[2] / "docs" / "adaptation"
PAGES = sorted(FOLDER.glob("*.md"))
EXAMPLES = [
    pytest.param(block, id=f"{page.stem}-{n}")
    for page in PAGES
    for n, block in enumerate(re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL))
]


def test_every_method_and_validator_is_on_its_page():
    methods, scores = ((FOLDER / name).read_text(encoding="utf-8") for name in ("adapt.md", "validators.md"))
    assert all(f"`{name}`" in methods for name in available())
    assert all(f"`{name}`" in scores for name in validators.available())
    assert len(EXAMPLES) >= 9


@pytest.mark.parametrize("block", EXAMPLES)
def test_an_example_runs(block, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    exec(compile(block, "example", "exec"), {"__name__": "example"})
