"""A killed command goes on to the result of an uninterrupted one; what compares them can tell a difference."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.kills.__main__ import IGNORED, LINES, following
from tests.kills.killed import Moment, drawn
from tests.kills.same import differences


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="commands are forks of one process that has imported torch")
@pytest.mark.parametrize("verb", LINES)
def test_killed_twice_and_equal(verb):
    """In a process of its own: pytest's has computed gradients, after which torch cannot be forked."""
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": f"{root / 'src'}:{root}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.kills", "--times", "2", "--seed", "5", "--verb", verb]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]


def written(folder, weight=0.0, value=1, seconds=2.5):
    (folder / "checkpoints/step-00000002").mkdir(parents=True)
    save_file({"a": torch.tensor([weight])}, folder / "model.safetensors")
    (folder / "result.json").write_text(json.dumps({"value": value, "seconds": seconds, "lead": f"in {seconds} s"}))
    (folder / "history.csv").write_text(f"step,loss,seconds\n1,{value},{seconds}\n")
    (folder / "checkpoints/step-00000002/checkpoint.json").write_text(json.dumps({"position": {"step": 2}}))
    return folder


def test_times_and_earlier_checkpoints_are_no_difference(tmp_path):
    ours, theirs = written(tmp_path / "a"), written(tmp_path / "b", seconds=9.0)
    assert differences(ours, theirs) == []
    (theirs / "checkpoints/step-00000001").mkdir()
    (theirs / "checkpoints/step-00000001/checkpoint.json").write_text("{}")
    assert differences(ours, theirs) == []


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: save_file({"a": torch.tensor([1e-7])}, f / "model.safetensors"), "model.safetensors differs"),
        (lambda f: (f / "result.json").write_text('{"value": 1'), "result.json cannot be read"),
        (lambda f: (f / "result.json").write_text('{"value": 2, "lead": "in 1 s"}'), "result.json differs"),
        (lambda f: (f / "history.csv").unlink(), "history.csv is missing"),
        (lambda f: (f / "history.csv").write_text("step,loss,seconds\n1,1.5,1\n"), "history.csv differs"),
        (lambda f: (f / ".lock").touch(), ".lock is left"),
        (lambda f: (f / ".result.json.3.draft").touch(), ".result.json.3.draft is left"),
        (lambda f: (f / "checkpoints/.writing-00000003").mkdir(), "checkpoints/.writing-00000003 is left"),
        (lambda f: (f / "checkpoints/step-00000003").mkdir(), "checkpoints/step-00000003 is too many"),
    ],
)
def test_everything_else_is_a_difference(tmp_path, spoil, said):
    ours, theirs = written(tmp_path / "a"), written(tmp_path / "b")
    spoil(ours)
    assert said in "; ".join(differences(ours, theirs))


def test_a_signal_that_python_drops_is_no_traceback_of_the_command():
    trace = 'Traceback (most recent call last):\n  File "weakref.py", line 369, in remove\n    def remove(k):\n\n'
    dropped = f"one\nException ignored in: <function remove at 0x7f>\n{trace}KeyboardInterrupt: \ntwo\n"
    assert IGNORED.sub("", dropped) == "one\ntwo\n"
    assert IGNORED.sub("", f"{trace}KeyboardInterrupt: \n") == f"{trace}KeyboardInterrupt: \n"
    assert "Traceback" in IGNORED.sub("", f"{dropped}{trace}ValueError: no\n")
    wrong = dropped.replace("KeyboardInterrupt", "ValueError")
    assert IGNORED.sub("", wrong) == wrong


def test_a_person_does_what_the_message_says():
    words = ["train", "--out", "run"]
    assert following(words, "go on with: convsmith train --out run --resume\n") == ["train", "--out", "run", "--resume"]
    assert following(words, "hint: --resume to go on, --overwrite to replace it") == [*words, "--resume"]
    assert following(words, "hint: --overwrite to replace it, or another --out") == [*words, "--overwrite"]
    assert following([*words, "--resume"], "the folder of an interrupted run, or leave --resume out") == words
    assert following(words, "") == words


def test_moments_lie_within_the_run_and_are_those_of_the_seed():
    moments = [drawn(random.Random(n), 40, 3.0) for n in range(200)]
    assert moments == [drawn(random.Random(n), 40, 3.0) for n in range(200)]
    assert {m.way for m in moments} == {"at", "after", "time"}
    assert {m.number for m in moments} == {signal.SIGKILL, signal.SIGINT}
    assert all(1 <= m.count <= 40 for m in moments if m.way != "time")
    assert all(0 <= m.seconds <= 3 for m in moments)
    assert str(Moment("at", signal.SIGINT, 3)) == "SIGINT at file operation 3"
