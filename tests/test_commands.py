"""Every command of README and pages runs in the order it stands, on tiny budgets; guides run in ``test_guides.py``."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.cli.test_bad_inputs import folder_of

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]
#: what a command gets added, so that it takes seconds; the last of two equal flags counts
SHORTER = {
    "audit": ("--minutes", "2"),
    "train": ("--epochs", "2"),
    "explain": ("--limit", "4"),
    "compress": ("--finetune-epochs", "1"),
    "adapt": ("--steps", "4", "--num-evals", "1"),
}
#: run elsewhere: the demonstration by ``make demo``, the set-up by every fresh clone
ELSEWHERE = ("convsmith demo", ".venv/bin/", "python3 -m venv", "git clone", "make ", "convsmith VERB", "eval ")
PAGES = (
    "README.md",
    "docs/cli.md",
    "docs/adaptation/adapt.md",
    "docs/compression/chooser.md",
    "docs/training/loop.md",
    "docs/training/scaling.md",
)
FACTORY = """
from torch import nn

def build():
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))
"""


def lines(page):
    """Yield every command that a page has in fenced blocks, without prompt, comment and pipe."""
    for language, block in re.findall(r"^```([a-z]*)\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE):
        if language != "python":
            for line in block.replace("\\\n", " ").splitlines():
                line = re.sub(r" [|#].*", "", line.removeprefix("$ ")).strip()
                if re.search(r"\bconvsmith [a-z]", line) and not line.startswith(ELSEWHERE):
                    yield line


def shortened(line):
    """Return the words as they run here: smaller budgets, and without published weights, which lie in the network."""
    words = shlex.split(line.replace("--nnodes 2", "--nnodes 1").replace("HOST", "localhost"))
    verb = words[words.index("convsmith") + 1]
    shorter = () if "--resume" in words else SHORTER.get(verb, ())
    if "resnet50" in words or "train-folder.yaml" in words:
        shorter += ("--random",) if verb == "audit" else ("--size", "32", "--batch-size", "8")
    words = [word for word in words if word not in {"--pretrained", "--multi_gpu"}] + [*shorter]
    if words[0] == "convsmith":
        return [sys.executable, "-m", *words]
    launcher = {"torchrun": ["torch.distributed.run"], "accelerate": ["accelerate.commands.launch"]}[words[0]]
    return [sys.executable, "-m", *launcher, *words[2 if words[0] == "accelerate" else 1 :]]


def run(words, place):
    paths = os.pathsep.join([str(ROOT / "src"), str(place)])
    environment = {**os.environ, "PYTHONPATH": paths, "COLUMNS": "120", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(words, cwd=place, env=environment, capture_output=True, text=True)
    told = f"{shlex.join(words)}\n{done.stdout[-800:]}\n{done.stderr[-1500:]}"
    assert done.returncode == 0, told
    assert "Traceback" not in done.stderr, told


@pytest.mark.parametrize("name", PAGES)
def test_the_commands_of_a_page_run_in_order(name, tmp_path):
    photos = folder_of(tmp_path / "photos", classes=("cat", "dog", "hare"), images=8, size=32)
    for other in ("phone", "catalogue"):
        (tmp_path / other).symlink_to(photos)
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package/nets.py").write_text(FACTORY)
    exec(FACTORY, scope := {})
    torch.save(scope["build"]().state_dict(), tmp_path / "best.pth")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / name).read_text(), re.DOTALL | re.MULTILINE)
    if name.endswith("scaling.md"):  # its commands read what its first block writes
        run([sys.executable, "-c", blocks[0]], tmp_path)
    found = list(lines(ROOT / name))
    assert found
    for line in found:
        run(shortened(line), tmp_path)
        for preset in tmp_path.glob("*.yaml"):
            text = preset.read_text().replace("imagefolder:PATH", "photos")
            preset.write_text(text.replace("pretrained: true\n", ""))
    if name == "README.md":  # its Python reads a run that its commands made
        for block in blocks:
            run([sys.executable, "-c", block], tmp_path)
