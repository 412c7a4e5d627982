"""Every public pooling has a place on the pages; their examples run in ``tests/test_page_examples.py``."""

from pathlib import Path

from convsmith.pooling import available


def test_every_pooling_is_in_the_index():
    index = (Path(__file__).parents[2] / "docs" / "pooling" / "index.md").read_text(encoding="utf-8")
    for name in available():
        assert f"`{name}`" in index
