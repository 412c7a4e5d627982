"""The wheel holds everything the demonstration needs, outside the checkout; its version stands in one place."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from convsmith import __version__

ROOT = Path(__file__).parents[1]


def test_what_names_the_version_names_the_same_one():
    assert 'version = { attr = "convsmith.version.__version__" }' in (ROOT / "pyproject.toml").read_text()
    assert f"version: {__version__}\n" in (ROOT / "CITATION.cff").read_text()
    for name in ("README.md", "README.zh.md"):
        assert set(re.findall(r"convsmith-([\d.]+)-py3", (ROOT / name).read_text())) <= {__version__}


def test_the_changelog_keeps_its_form():
    heads = re.findall(r"^(##+ .*)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert heads[0] == "## [Unreleased]"
    kinds = {f"### {kind}" for kind in ("Added", "Changed", "Deprecated", "Removed", "Fixed", "Security")}
    assert all(
        head in kinds or re.fullmatch(r"## \[(Unreleased|[\d.]+\] - \d{4}-\d\d-\d\d)\]?", head) for head in heads
    )


@pytest.mark.slow
def test_the_demonstration_runs_from_the_wheel(tmp_path):
    pytest.importorskip("build")
    wheel = [sys.executable, "-m", "build", "-q", "--wheel", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(wheel, check=True)
    (file,) = (tmp_path / "dist").glob("*.whl")
    target = tmp_path / "installed"
    into = ["install", "-q", "--no-deps", "--no-index", "--target", str(target), str(file)]
    subprocess.run([sys.executable, "-m", "pip", *into], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target)}
    where = [sys.executable, "-c", "import convsmith; print(convsmith.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.startswith(str(target))
    words = ["demo", "--out", "run", "--json", "--minutes", "15"]
    done = subprocess.run(
        [sys.executable, "-m", "convsmith", *words], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-1500:]
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["chapters"]["sharper"]["sentence"]
    assert (tmp_path / "run" / "report.html").stat().st_size < 3e6
