"""A disk that is full, and a place where nothing may be made: one clear error, and what was good before stays."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
TRAIN = "train --model cs_lenet --data digits --epochs 1 --limit 60 --batch-size 20"
LINES = {
    "train": TRAIN,
    "compress": "compress first --data digits --method low-rank --keep-macs 0.5 --limit 60 --no-compiled --no-onnx",
    "explain": "explain first --data digits --limit 4 --steps 4 --save routes.safetensors",
    "evaluate": "evaluate --checkpoint first --data digits --limit 60",
    "export": "export first --format torch-export",
    "detect": "detect fit first --data digits --per-class 2 --limit 60",
    "audit": "audit first --data digits --minutes 1",
    "demo": "demo",
    "report": "report first",
    "adapt": "adapt --source digits --target digits --target-classes 0-4 --model cs_lenet --size 16 --steps 4",
}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="limits and /proc as Linux has them"),
]


def convsmith(folder, line, *more, most=None):
    def limit():
        if most is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))

    return subprocess.run(
        [sys.executable, "-m", "convsmith", *line.split(), *more],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
        preexec_fn=limit,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    done = convsmith(folder, TRAIN, "--out", "first")
    assert done.returncode == 0, done.stderr
    return folder


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


@pytest.mark.parametrize("verb", LINES)
def test_a_full_disk_is_one_clear_error(place, verb):
    before = contents(place / "first")
    done = convsmith(place, LINES[verb], "--out", f"full-{verb}", most=3000)
    assert done.returncode == 1, (done.returncode, done.stdout[-500:], done.stderr[-2000:])
    assert "Traceback" not in done.stderr
    assert "this is a bug" not in done.stderr, done.stderr
    assert "File too large" in done.stderr or "disk refused" in done.stderr, done.stderr
    assert contents(place / "first") == before
    left = [p for p in (place / f"full-{verb}").rglob("*") if p.name.endswith(".draft") or p.name == ".lock"]
    assert not left


def test_a_table_is_whole_or_not_there(place):
    pictures = place / "pictures"
    pictures.mkdir()
    for number in range(8):
        Image.new("L", (8, 8), 30 * number).save(pictures / f"{number}.png")
    done = convsmith(place, "predict first pictures --out table.csv", most=200)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "table.csv" in done.stderr
    assert "File too large" in done.stderr
    assert not [p for p in place.iterdir() if "table" in p.name]


def test_settings_are_whole_or_not_there(place):
    for file, most in (("mine.yaml", 300), ("/proc/mine.yaml", None)):
        done = convsmith(place, "init finetune --file", file, most=most)
        assert done.returncode == 1, done.stderr[-2000:]
        assert file in done.stderr
        assert not [p for p in place.iterdir() if "mine" in p.name]


@pytest.mark.parametrize("most", [100_000, 300_000])
def test_a_disk_that_fills_while_checkpoints_are_written_keeps_the_whole_ones(place, most):
    line = "train --model cs_resnet20 --model-args width=8 --data digits --steps 6 --checkpoint-every 2 --batch-size 32"
    done = convsmith(place, line, "--out", f"filled-{most}", most=most)
    assert done.returncode == 1, done.stderr[-2000:]
    assert "earlier ones are kept" in done.stderr
    steps = [p for p in (place / f"filled-{most}" / "checkpoints").iterdir() if p.name.startswith("step-")]
    assert all((p / "checkpoint.json").is_file() for p in steps)
    again = convsmith(place, "train --resume --out", f"filled-{most}")
    assert again.returncode == 0, again.stderr[-2000:]


@pytest.mark.parametrize("verb", LINES)
def test_a_place_where_nothing_can_be_made_is_refused(place, verb):
    before = contents(place / "first")
    done = convsmith(place, LINES[verb], "--out", "/proc/convsmith")
    assert done.returncode in (1, 2), done.stderr[-2000:]
    assert "/proc/convsmith" in done.stderr
    assert "Traceback" not in done.stderr
    assert "this is a bug" not in done.stderr, done.stderr
    assert contents(place / "first") == before
