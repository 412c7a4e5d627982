"""``import convsmith`` is silent, light, and makes our models known to timm once timm is there."""

import subprocess
import sys
from pathlib import Path

SOURCE = str(Path(__file__).parents[1] / "src")


def run(code):
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": SOURCE, "PATH": "/usr/bin:/bin"},
        check=False,
    )


def test_import_prints_nothing_and_loads_nothing_heavy():
    done = run(
        "import sys, convsmith; heavy = {'torch', 'timm', 'numpy', 'torchvision', 'sklearn'} & set(sys.modules);"
        " assert not heavy, heavy"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_unknown_attribute_is_an_attribute_error():
    done = run("import convsmith; convsmith.nothing")
    assert done.returncode == 1
    assert "AttributeError: module 'convsmith' has no attribute 'nothing'" in done.stderr
