"""Several processes do what one does; devices and precisions are refused where they do not exist."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from convsmith.errors import InvalidArgument, MissingExtra
from convsmith.training import ClassificationTask, TrainConfig, checkpoint, fit, rank_and_world, resolve_device
from convsmith.training.machine import resolve_precision
from tests.training import processes, runs

ROOT = Path(__file__).parents[2]


def launch(out, *jobs, world=2):
    """Start jobs (norm, accumulate, mode) in gloo processes with torchrun."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([f"{ROOT}/src", str(ROOT)]),
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world}"]
    words = ["-m", "tests.training.processes", str(out), *(",".join(job) for job in jobs)]
    return subprocess.Popen([*torchrun, *words], env=environment, stderr=subprocess.PIPE)


def spawn(out, *jobs, world=2):
    """Run jobs to their end; return each job's final weights, by rank."""
    process = launch(out, *jobs, world=world)
    try:
        _, complaint = process.communicate(timeout=300)
    finally:
        process.kill()
    assert process.returncode == 0, complaint.decode()
    return [[load_file(out / "-".join(job) / f"final-{rank}.safetensors") for rank in range(world)] for job in jobs]


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    out = tmp_path_factory.mktemp("two")
    jobs = [("group", "1", "new"), ("frozen", "1", "new"), ("group", "2", "new"), ("group", "2", "resume")]
    return out, dict(zip(jobs, spawn(out, *jobs), strict=True))


@pytest.mark.parametrize("norm", ["group", "frozen"])
def test_two_gloo_processes_equal_one_with_the_same_global_batch(tmp_path, together, norm):
    """Weights agree to 1e-6 after 20 steps; group normalisation, or batch normalisation frozen at its statistics."""
    one, result = processes.train(norm, tmp_path, 0, 1)
    assert result.steps == 20
    before = processes.network(norm).state_dict()
    out, finals = together
    first, second = finals[norm, "1", "new"]
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(first[name], tensor, rtol=0, atol=1e-6, msg=name)
    assert max((first[f"model.{k}"] - v).abs().max().item() for k, v in before.items()) > 1e-2
    positions = [checkpoint.load(folder).position for folder in (out / f"{norm}-1-new", tmp_path)]
    assert positions[0].best_step == positions[1].best_step


def test_two_processes_resume_bit_identically(together):
    _, finals = together
    torch.testing.assert_close(finals["group", "2", "resume"], finals["group", "2", "new"], rtol=0, atol=0)


@pytest.mark.slow
def test_a_signal_to_torchrun_is_agreed_on_and_saved(tmp_path):
    process = launch(tmp_path, ("group", "1", "slow"))
    folder = tmp_path / "group-1-slow"
    deadline = time.monotonic() + 300
    while not any(s >= 4 for s in checkpoint.saved_steps(folder)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=300)
    assert "stopped at" in complaint.decode()
    saved = checkpoint.load(folder).position
    assert saved.step < processes.STEPS
    assert saved.step % 4 == 0  # processes agree every log_every steps
    assert not saved.complete


def test_rank_and_world_come_from_the_launcher(monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert rank_and_world() == (0, 1)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "8")
    assert rank_and_world() == (3, 8)


def test_a_loader_of_the_wrong_share_is_refused(monkeypatch):
    loader = runs.loader(4, rank=0, world=2)
    with pytest.raises(InvalidArgument, match="share of another process"):
        fit(
            ClassificationTask(runs.network(), 3),
            loader,
            runs.config(patience=None, evaluate_every=None, checkpoint_every=None),
        )


def test_devices():
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type in {"cpu", "cuda"}
    for name in ("cuda:99", "mps:3"):
        with pytest.raises(InvalidArgument, match="does not have the device"):
            resolve_device(name)
    with pytest.raises(InvalidArgument, match="no device has this name"):
        resolve_device("gpu")


def test_precisions():
    cpu = torch.device("cpu")
    assert resolve_precision("auto", cpu) == "fp32"
    assert resolve_precision("bf16", cpu) == "bf16"
    with pytest.raises(InvalidArgument, match="fp16 training needs a GPU"):
        resolve_precision("fp16", cpu)


def test_an_accelerator_of_the_callers_own_survives():
    mine = Accelerator(cpu=True, mixed_precision="bf16")
    settings = {"patience": None, "evaluate_every": None, "checkpoint_every": None, "warmup_steps": 0, "steps": 2}
    done = fit(ClassificationTask(runs.network(), 3), runs.loader(), runs.config(**settings, precision="fp32"))
    assert done.precision == "fp32"
    assert mine.mixed_precision == "bf16"
    assert mine.device == torch.device("cpu")


def test_a_tracker_gets_the_numbers(tmp_path):
    pytest.importorskip("tensorboard")
    settings = {"patience": None, "evaluate_every": None, "steps": 8, "trackers": ("tensorboard",)}
    fit(ClassificationTask(runs.network(), 3), runs.loader(), runs.config(**settings), out=tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "convsmith"))
    events.Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [4, 8]


def test_a_tracker_that_is_not_there_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="pip install wandb"):
        fit(ClassificationTask(runs.network(), 3), runs.loader(), TrainConfig(steps=1, trackers=("wandb",)))
