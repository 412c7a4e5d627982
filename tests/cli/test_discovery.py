"""A new method, verb or study is its file: one of each is put into a copy of the package and used by its name."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

FILES = {
    "src/convsmith/pooling/own.py": '''
"""Twice the average."""
from convsmith.pooling.layers import POOLINGS, GlobalAverage

@POOLINGS.register("own-pooling", order=1, paper="")
class Own(GlobalAverage):
    """Twice the average."""

    def __init__(self, in_channels: int, dim: int | None = None, factor: float = 2.0) -> None:
        super().__init__(in_channels, dim)
        self.factor = factor

    def pool(self, x):
        return self.factor * super().pool(x)
''',
    "src/convsmith/compression/methods/own.py": '''
"""Low rank under another name."""
from dataclasses import dataclass
from convsmith.compression.methods.low_rank import LowRankMethod
from convsmith.compression.methods.method import METHODS

@METHODS.register("own-compressor")
@dataclass(frozen=True)
class Own(LowRankMethod):
    """Low rank under another name."""
''',
    "src/convsmith/adaptation/methods/own.py": '''
"""Source-only under another name."""
from convsmith.adaptation.methods.method import METHODS
from convsmith.adaptation.methods.source_only import SourceOnly

@METHODS.register("own-adapter", **METHODS.entry("source-only").traits)
class Own(SourceOnly):
    """Source-only under another name."""
''',
    "src/convsmith/adaptation/evaluation/own.py": '''
"""A validator."""
from convsmith.adaptation.evaluation.validators import VALIDATORS

@VALIDATORS.register("own-validator", **VALIDATORS.entry("entropy").traits)
def own(p) -> float:
    """Return the same number for everything."""
    return 1.0
''',
    "src/convsmith/interpretation/own.py": '''
"""An attack."""
from convsmith.interpretation.attacks import ATTACKS

@ATTACKS.register("own-attack")
def own(setting, start, labels, *, shift: float = 0.5):
    """Brighten the image."""
    return (start + shift * setting.epsilon).clamp(0, 1)
''',
    "src/convsmith/cli/verbs/own.py": '''
"""``convsmith own``: say a word."""
from dataclasses import dataclass
from convsmith.cli.shell.options import Listing, option

EXAMPLES = ("own --word hello",)

@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Say a word."""

    word: str = option("hello", "what to say")

def run(arguments):
    from convsmith.interpretation import attack
    import torch

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 2)).eval()
    images, labels = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    moved = attack(model, images, labels, "own-attack", epsilon=0.2, shift=1.0, round_to_8bit=False)
    return {"word": arguments.word, "moved": round(float(moved.mean()), 4)}
''',
    "experiments/studies/own.py": '''
"""A study."""
from experiments.studies.contract import Outcome, study

@study("own/claim", claim="one is one", source="none", rule="one equals one", data="none")
def own(run) -> Outcome:
    """Compare one with one."""
    return Outcome("reproduced", f"one is {run.cell('one', lambda: 1)}")
''',
}


def command(where, *words):
    environment = {**os.environ, "PYTHONPATH": f"{where / 'src'}:{where}", "HF_HUB_OFFLINE": "1"}
    words = [*words, "--json"]
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=where, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stderr}"
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    where = tmp_path_factory.mktemp("copy")
    for name in ("src", "experiments"):
        shutil.copytree(ROOT / name, where / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
    for name, text in FILES.items():
        path = where / name
        path.write_text(text)
    return where


SMALL = ("--model-args", "width=4", "depth=8", "--limit", "64")


def test_every_kind_is_listed_by_name(copy):
    listed = command(copy, "convsmith", "methods")["methods"]
    for kind, name in (
        ("pooling", "own-pooling"),
        ("compression method", "own-compressor"),
        ("adaptation method", "own-adapter"),
        ("validator", "own-validator"),
        ("attack", "own-attack"),
    ):
        assert name in listed[kind]


def test_a_verb_and_an_attack_and_a_study_are_used_by_name(copy):
    assert "own" in subprocess.run(
        [sys.executable, "-m", "convsmith", "--help"],
        cwd=copy, env={**os.environ, "PYTHONPATH": str(copy / "src")}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    said = command(copy, "convsmith", "own", "--word", "there")
    assert (said["word"], said["moved"]) == ("there", 0.7)
    assert command(copy, "experiments", "study", "own/claim")["verdicts"] == {"own/claim": "reproduced"}


@pytest.mark.slow
def test_a_pooling_and_a_compressor_are_used_by_name(copy):
    words = ("--pooling", "own-pooling", "--pooling-args", "factor=3", "--pooling-dim", "8", "--dry-run")
    assert command(copy, "convsmith", "train", "--data", "digits", *SMALL, *words)["steps"] > 0
    words = ("--method", "own-compressor", "--set", "rank=0.5", "--dry-run")
    said = command(copy, "convsmith", "compress", "cs_lenet", "--data", "digits", "--limit", "64", *words)
    assert said["method"] == "own-compressor"
    assert said["keeps"]["macs"] < 1


@pytest.mark.slow
def test_an_adaptation_method_and_a_validator_are_used_by_name(copy):
    said = command(
        copy, "convsmith", "adapt", "--source", "digits", "--target", "digits", "--method", "own-adapter",
        "--validator", "own-validator", "--model", "cs_resnet20", "--model-args", "width=4", "depth=8",
        "--steps", "2", "--no-reference", "--out", "adapted",
    )  # fmt: skip
    assert said["validator"] == "own-validator"
