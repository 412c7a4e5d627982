"""The examples on the docs pages run, and every public pooling has a place there."""

import re
from pathlib import Path

import pytest

from convsmith.pooling import available

PAGES = sorted((Path(__file__).parents[2] / "docs" / "pooling").glob("*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_examples_of_a_page_run_in_order(page):
    blocks = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    names = {"__name__": "example"}
    for block in blocks:
        exec(compile(block, page.name, "exec"), names)


def test_every_pooling_is_in_the_index():
    index = (PAGES[0].parent / "index.md").read_text(encoding="utf-8")
    for name in available():
        assert f"`{name}`" in index
