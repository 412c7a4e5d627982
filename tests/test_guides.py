"""The guides run from their own text: every block of Python, every command, in the order they stand."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
GUIDES = sorted((ROOT / "docs" / "guides").glob("*.md"))


def steps(page):
    """Yield ("python", code) and ("command", words) as the page has them."""
    for language, block in re.findall(r"^```([a-z]*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language == "python":
            yield "python", block
        else:
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("convsmith "):
                    yield "command", shlex.split(line, comments=True)


def test_there_are_five_guides_and_each_does_something():
    assert [page.stem for page in GUIDES] == ["adapt", "compress", "explain", "guard", "train"]
    for page in GUIDES:
        kinds = [kind for kind, _ in steps(page)]
        assert kinds[0] == "python"
        assert kinds.count("command") >= 2


@pytest.mark.slow
@pytest.mark.parametrize("page", GUIDES, ids=[page.stem for page in GUIDES])
def test_a_guide_runs_as_it_stands(page, tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "COLUMNS": "200"}
    for kind, what in steps(page):
        words = [sys.executable, "-c", what] if kind == "python" else [sys.executable, "-m", *what]
        done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, f"{what}\n{done.stdout[-1500:]}\n{done.stderr[-1500:]}"
        assert "Traceback" not in done.stderr
