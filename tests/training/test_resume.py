"""A run that was killed, stopped or interrupted and then continued is the run that was not."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.training import checkpoint, randomness
from convsmith.training.history import read_history
from tests.training import runs

ROOT = Path(__file__).parents[2]


def start(folder, mode, seconds=0.0, optimizer="sgd", *more):
    command = [sys.executable, "-m", "tests.training.runs", str(folder), mode, str(seconds), optimizer, *more]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(folder, step, process):
    deadline = time.monotonic() + 240
    while not any(s >= step for s in checkpoint.saved_steps(folder)):
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.002)


def assert_same_run(one, other):
    """Weights, optimizer, average and random states are bit-identical; so is the log, times apart."""
    torch.testing.assert_close(dict(one.weights), dict(other.weights), rtol=0, atol=0)
    torch.testing.assert_close(one.state["optimizer"]["state"], other.state["optimizer"]["state"], rtol=0, atol=0)
    torch.testing.assert_close(one.state["average"], other.state["average"], rtol=0, atol=0)
    assert one.state["random"][0]["python"] == other.state["random"][0]["python"]
    assert torch.equal(one.state["random"][0]["torch"], other.state["random"][0]["torch"])
    assert (one.position.best_step, one.position.stale) == (other.position.best_step, other.position.stale)


def rows(folder):
    return [{k: v for k, v in row.items() if k != "seconds"} for row in read_history(folder)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    runs.train(folder, resume=False)
    return folder


def test_killed_at_three_random_steps_and_resumed_is_bit_identical(tmp_path, uninterrupted):
    kills = sorted(random.Random(11).sample(range(1, runs.STEPS - 1), 3))
    for number, step in enumerate(kills):
        process = start(tmp_path, "resume" if number else "new", seconds=0.004)
        wait_for(tmp_path, step, process)
        time.sleep(random.Random(step).random() * 0.01)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
    _, done = runs.train(tmp_path, resume=True)
    assert done.steps == runs.STEPS
    assert_same_run(checkpoint.load(tmp_path), checkpoint.load(uninterrupted))
    assert rows(tmp_path) == rows(uninterrupted)


@pytest.mark.slow
def test_a_recipe_with_workers_killed_and_resumed_is_bit_identical(tmp_path):
    """RandAugment, erasing, mixup, CutMix, an average and two workers; the reference has no worker."""
    whole, part = tmp_path / "whole", tmp_path / "part"
    task = runs.ClassificationTask(runs.network(), 3)
    pixels, labels = runs.images()
    validation = [runs.Batch(pixels - 0.5, labels, torch.arange(len(labels)))]
    runs.fit(task, runs.loader(recipe=True, workers=0), runs.config(), validation=validation, out=whole)
    for number, step in enumerate((5, 16)):
        process = start(part, "resume" if number else "new", 0.004, "sgd", "recipe")
        wait_for(part, step, process)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()
    _, done = runs.train(part, resume=True, recipe=True)
    assert done.steps == runs.STEPS
    assert_same_run(checkpoint.load(part), checkpoint.load(whole))
    assert rows(part) == rows(whole)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_resumed_from_every_step(tmp_path, optimizer):
    whole = tmp_path / "whole"
    runs.train(whole, resume=False, keep_last=100, optimizer=optimizer)
    end = checkpoint.load(whole)
    for step in range(0, runs.STEPS, 1 if optimizer == "sgd" else 5):
        part = tmp_path / f"from-{step}"
        place = checkpoint.path_of(part, step)
        place.parent.mkdir(parents=True)
        place.symlink_to(checkpoint.path_of(whole, step))
        (part / "history.jsonl").write_text((whole / "history.jsonl").read_text())
        runs.train(part, resume=True, keep_last=100, optimizer=optimizer)
        assert_same_run(checkpoint.load(part), end)
        assert rows(part) == rows(whole)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_returns_interrupted(tmp_path, uninterrupted, number):
    process = start(tmp_path, "new", seconds=0.02)
    wait_for(tmp_path, 3, process)
    process.send_signal(number)
    assert process.wait(timeout=240) == 130
    assert not process.stderr.read()
    process.stderr.close()
    assert 3 <= checkpoint.load(tmp_path).position.step < runs.STEPS
    runs.train(tmp_path, resume=True)
    assert_same_run(checkpoint.load(tmp_path), checkpoint.load(uninterrupted))


def test_resuming_a_finished_run_does_nothing_more(tmp_path, uninterrupted):
    task, done = runs.train(uninterrupted, resume=True)
    assert done.steps == runs.STEPS
    assert not done.interrupted
    average = checkpoint.load(uninterrupted).state["average"]
    for name, tensor in average.items():
        torch.testing.assert_close(task.state_dict()[name], tensor, rtol=0, atol=0)


def test_the_time_of_a_resumed_run_is_that_of_all_its_sessions(tmp_path):
    runs.train(tmp_path, resume=False, keep_last=100)
    for step in checkpoint.saved_steps(tmp_path)[-2:]:
        shutil.rmtree(checkpoint.path_of(tmp_path, step))
    stated = checkpoint.path_of(tmp_path, checkpoint.saved_steps(tmp_path)[-1]) / "checkpoint.json"
    about = json.loads(stated.read_text())
    about["position"]["seconds"] += 1000
    stated.write_text(json.dumps(about))
    _, done = runs.train(tmp_path, resume=True, keep_last=100)
    assert 1000 < done.seconds < 2000
    assert read_history(tmp_path)[-1]["seconds"] > 1000


def test_patience_and_best_survive(tmp_path):
    settings = {"patience": 2, "evaluate_every": 2, "restore": "best", "lr": 1e-6, "ema": None}
    whole, part = tmp_path / "whole", tmp_path / "part"
    task, done = runs.train(whole, resume=False, keep_last=100, **settings)
    assert done.stopped_early
    stop = done.steps
    place = checkpoint.path_of(part, stop - 1)
    place.parent.mkdir(parents=True)
    place.symlink_to(checkpoint.path_of(whole, stop - 1))
    (checkpoint.folder(part) / f"step-{done.best_step:08d}").symlink_to(checkpoint.path_of(whole, done.best_step))
    again, resumed = runs.train(part, resume=True, keep_last=100, **settings)
    assert (resumed.steps, resumed.best_step, resumed.stopped_early) == (stop, done.best_step, True)
    torch.testing.assert_close(again.state_dict(), task.state_dict(), rtol=0, atol=0)


def test_resume_refuses_what_would_be_another_run(tmp_path, uninterrupted):
    with pytest.raises(InvalidArgument, match="no checkpoint to continue from"):
        runs.train(tmp_path, resume=True)
    with pytest.raises(InvalidArgument, match=r"lr: 0\.05 then, 0\.2 now"):
        runs.train(uninterrupted, resume=True, lr=0.2)
    task = runs.ClassificationTask(runs.network(), 3)
    with pytest.raises(InvalidArgument, match="batches: 6 then, 3 now"):
        runs.fit(task, runs.loader(16), runs.config(patience=None, evaluate_every=None), out=uninterrupted, resume=True)


def test_resume_refuses_a_checkpoint_of_another_model(uninterrupted):
    other = runs.network()
    other[5] = torch.nn.Linear(96, 4)
    task = runs.ClassificationTask(other, 4)
    with pytest.raises(InvalidArgument, match=r"model\.5\.weight is \(3, 96\) in the file and \(4, 96\) in the model"):
        runs.fit(task, runs.loader(), runs.config(), validation=[1], out=uninterrupted, resume=True)


def test_random_states_come_back():
    randomness.seed_all(5)
    state = randomness.capture()
    first = (random.random(), np.random.rand(), torch.rand(3))  # noqa: NPY002
    randomness.restore(state)
    second = (random.random(), np.random.rand(), torch.rand(3))  # noqa: NPY002
    assert first[:2] == second[:2]
    assert torch.equal(first[2], second[2])
