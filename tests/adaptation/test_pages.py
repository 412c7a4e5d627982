"""The pages name what exists; their examples run in ``tests/test_page_examples.py``."""

from pathlib import Path

from convsmith.adaptation import available
from convsmith.adaptation.evaluation import validators

FOLDER = Path(__file__).parents[2] / "docs" / "adaptation"


def test_every_method_and_validator_is_on_its_page():
    methods, scores = ((FOLDER / name).read_text(encoding="utf-8") for name in ("adapt.md", "validators.md"))
    assert all(f"`{name}`" in methods for name in available())
    assert all(f"`{name}`" in scores for name in validators.available())
