"""The documentation builds without a warning, and every public name has its place in the reference."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.site import ROOMS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "-q", "-d", str(folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert not done.stderr.strip(), done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("room", ROOMS)
def test_every_public_name_has_a_reference(site, room):
    page = (site / "reference" / room / "index.html").read_text()
    there = set(re.findall(r'id="convsmith\.([\w.]+)"', page))
    names = getattr(importlib.import_module(f"convsmith.{room}"), "__all__", ())
    callables = [n for n in names if callable(getattr(importlib.import_module(f"convsmith.{room}"), n))]
    missing = [n for n in callables if not {f"{room}.{n}", f"{room}.{n}.{n}"} & there]
    assert not missing, f"{room}: {missing}"
