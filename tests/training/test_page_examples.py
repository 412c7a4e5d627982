"""The Python on the documentation pages of the loop and the models runs as printed."""

import re
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"
#: its commands run in tests/cli/test_pretrained.py
COMMANDS_ONLY = {DOCS / "training" / "pretrained.md"}
PAGES = sorted(
    [
        *({*DOCS.glob("training/*.md")} - COMMANDS_ONLY),
        *DOCS.glob("models/residual.md"),
        *DOCS.glob("models/storage.md"),
    ]
)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_examples_run(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert blocks
    for block in blocks:
        exec(compile(block, str(page), "exec"), {"__name__": "example"})
