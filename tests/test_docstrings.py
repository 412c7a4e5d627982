"""Every public function has an example in its docstring, and all of them run.

In the examples stand, besides torch, nn, np and Path, the names of the function's room and what a user has: ``model``,
``images``, ``labels``, ``loader``, and a folder with ``photo.png``.
"""

import doctest
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

from convsmith.cli import main
from convsmith.data import Batch, from_arrays

ROOMS = (
    "adaptation",
    "compression",
    "data",
    "inspection",
    "interpretation",
    "models",
    "pooling",
    "report",
    "testing",
    "training",
)
FUNCTIONS = [
    (room, name)
    for room in ROOMS
    for name in importlib.import_module(f"convsmith.{room}").__all__
    if inspect.isfunction(getattr(importlib.import_module(f"convsmith.{room}"), name))
]


@pytest.fixture(scope="module")
def trained():
    """Return a small network that is sure of its answers on eight random images: routes exist only in such."""
    torch.manual_seed(0)
    model = timm.create_model("cs_resnet20", num_classes=10, width=4, depth=8)
    images, labels = torch.randn(8, 3, 16, 16), torch.arange(8)
    optimizer = torch.optim.Adam(model.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval(), images, labels


def test_the_functions_are_found():
    assert len(FUNCTIONS) > 140


@pytest.mark.parametrize(("room", "name"), FUNCTIONS, ids=lambda part: part)
def test_the_example_of_a_function_runs(room, name, trained, monkeypatch, tmp_path, capsys):
    import copy

    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (20, 16)).save("photo.png")
    module = importlib.import_module(f"convsmith.{room}")
    model, images, labels = trained
    scope = {key: getattr(module, key) for key in module.__all__}
    scope |= {"torch": torch, "nn": nn, "np": np, "Path": Path, "from_arrays": from_arrays}
    scope |= {"model": copy.deepcopy(model), "images": images, "labels": labels}
    scope["loader"] = [Batch(images, labels, torch.arange(8))]
    if name in {"build_report", "read_run"}:
        words = ["train", "--data", "digits", "--limit", "40", "--epochs", "1", "--out", "runs/first", "--model-args"]
        assert main.main([*words, "width=4", "depth=8"]) == 0
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(module, name), name, globs=scope)
    assert found.examples, "no example"
    capsys.readouterr()
    outcome = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE).run(found)
    assert outcome.failed == 0, capsys.readouterr().out
