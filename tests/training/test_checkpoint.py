import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from convsmith.errors import InvalidArgument, RunFailed
from convsmith.training import checkpoint
from convsmith.training.checkpoint import Checkpoint, Position

SOURCE = str(Path(__file__).parents[2] / "src")


def at(step, best=None):
    weights = {"w": torch.full((3,), float(step)), "n": torch.tensor(step)}
    state = {"optimizer": {"m": torch.ones(2)}, "average": None, "numbers": [1, 2.5, "three", None, True]}
    return Checkpoint(
        Position(step, 0, step, best_step=best, best_value=0.5), {"lr": 0.1}, weights, state, {"batches": 4}
    )


def test_round_trip(tmp_path):
    written = at(7, best=7)
    checkpoint.save(tmp_path, written, keep_last=2)
    read = checkpoint.load(tmp_path)
    assert (read.position, read.config, read.facts) == (written.position, written.config, written.facts)
    torch.testing.assert_close(dict(read.weights), dict(written.weights), rtol=0, atol=0)
    torch.testing.assert_close(read.state["optimizer"], written.state["optimizer"], rtol=0, atol=0)
    assert read.state["numbers"] == written.state["numbers"]


def test_files_are_safetensors_json_and_plain_tensors(tmp_path):
    place = checkpoint.save(tmp_path, at(1), keep_last=2)
    assert sorted(p.name for p in place.iterdir()) == ["checkpoint.json", "state.pt", "weights.safetensors"]
    json.loads((place / "checkpoint.json").read_text())
    torch.load(place / "state.pt", weights_only=True)


def test_keeps_the_last_and_the_best(tmp_path):
    for step in range(1, 8):
        checkpoint.save(tmp_path, at(step, best=2 if step >= 2 else None), keep_last=2)
    assert checkpoint.saved_steps(tmp_path) == [2, 6, 7]
    assert checkpoint.load(tmp_path).position.best_step == 2
    checkpoint.save(tmp_path, at(8, best=8), keep_last=2)
    assert checkpoint.saved_steps(tmp_path) == [7, 8]
    assert checkpoint.load(tmp_path, 7).position.step == 7


@pytest.mark.parametrize("moment", ["save_file", "torch.save", "_to_disk", "rename", "_prune", "rmtree"])
def test_a_kill_in_the_middle_of_a_write_leaves_the_last_good_one(tmp_path, moment):
    """SIGKILL at each stage of the write of step 2: what is found is complete, step 2 once it is renamed, else 1."""
    target = {
        "save_file": "checkpoint.save_file",
        "torch.save": "torch.save",
        "_to_disk": "checkpoint._to_disk",
        "rename": "checkpoint.Path.rename",
        "_prune": "checkpoint._prune",
        "rmtree": "checkpoint.shutil.rmtree",
    }[moment]
    # rmtree first clears the draft's place (which must go through) and later removes a pruned checkpoint
    program = f"""
import os, signal, sys, torch
from pathlib import Path
from convsmith.training import checkpoint
from convsmith.training.checkpoint import Checkpoint, Position
def at(step):
    return Checkpoint(Position(step, 0, step), {{}}, {{"w": torch.full((3,), float(step))}}, {{}}, {{}})
run = Path(sys.argv[1])
checkpoint.save(run, at(1), keep_last=2)
calls, real = 0, {target}
def die(*args, **kwargs):
    global calls
    calls += 1
    if "{moment}" != "rmtree" or calls > 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)
{target} = die
checkpoint.save(run, at(2), keep_last=1)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": SOURCE},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    found = checkpoint.load(tmp_path)
    expected = 2 if moment in {"_prune", "rmtree"} else 1
    assert found.position.step == expected
    assert found.weights["w"].tolist() == [expected] * 3
    checkpoint.save(tmp_path, at(3), keep_last=1)
    assert [p.name for p in checkpoint.folder(tmp_path).iterdir()] == ["step-00000003"]


def test_only_trained_parameters_must_be_finite():
    module = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    module.register_buffer("mask", torch.tensor([float("-inf"), 0.0]))
    module[1].requires_grad_(False)
    with torch.no_grad():
        module[1].weight.fill_(float("inf"))
    checkpoint.refuse_broken(module, 3)
    with torch.no_grad():
        module[0].bias.fill_(float("nan"))
    with pytest.raises(RunFailed, match="no longer finite") as caught:
        checkpoint.refuse_broken(module, 3)
    assert "0.bias" in str(caught.value)


def test_a_disk_that_refuses_is_reported(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    checkpoint.save(tmp_path, at(1), keep_last=2)
    monkeypatch.setattr(checkpoint, "_to_disk", full)
    with pytest.raises(RunFailed, match="No space left"):
        checkpoint.save(tmp_path, at(2), keep_last=2)
    assert checkpoint.load(tmp_path).position.step == 1


def test_bad_folders(tmp_path):
    with pytest.raises(InvalidArgument, match="a folder without checkpoints"):
        checkpoint.load(tmp_path)
    place = checkpoint.save(tmp_path, at(1), keep_last=2)
    with pytest.raises(InvalidArgument, match="at step 5"):
        checkpoint.load(tmp_path, 5)
    about = json.loads((place / "checkpoint.json").read_text())
    (place / "checkpoint.json").write_text(json.dumps({**about, "format": 99}))
    with pytest.raises(InvalidArgument, match="format 99"):
        checkpoint.load(tmp_path)


def test_weights_of_another_model_name_the_first_differences():
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 2))
    weights = {
        "0.weight": torch.zeros(4, 2),
        "0.bias": torch.zeros(3),
        "1.weight": torch.zeros(2, 3),
        "x": torch.ones(1),
    }
    with pytest.raises(InvalidArgument) as caught:
        checkpoint.load_weights(module, weights, source="file")
    text = str(caught.value)
    assert "1.bias (2,) is not in the file" in text
    assert "x (1,) is not in the model" in text
    assert "0.weight is (4, 2) in the file and (3, 2) in the model" in text


@pytest.mark.parametrize("name", ["checkpoint.json", "weights.safetensors", "state.pt"])
def test_a_damaged_file_is_one_clear_error(name, tmp_path):
    place = checkpoint.save(tmp_path, at(1), keep_last=2)
    for raw in (b"", b"\x00\x01nothing", (place / name).read_bytes()[:40]):
        (place / name).write_bytes(raw)
        with pytest.raises(InvalidArgument, match="damaged") as caught:
            checkpoint.load(tmp_path)
        assert str(place) in str(caught.value)
