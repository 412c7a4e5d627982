"""Three processes of torchrun: every image once, the results of one, and a clear end when one of them is killed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from convsmith.training import checkpoint
from convsmith.training.history import read_history
from tests.data_room.pictures_on_disk import folder
from tests.data_room.test_shards import shard

pytestmark = pytest.mark.slow
SOURCE = Path(__file__).parents[2] / "src"
NET = ("--model", "cs_resnet20", "--model-args", "width=4", "depth=8")


def launched(words, place, world):
    """Start a command in ``world`` processes of torchrun, or in one without it."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(world)] if world > 1 else []
    threads = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), **threads}
    return subprocess.Popen(
        [sys.executable, *torchrun, "-m", "convsmith", *words],
        cwd=place,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def done(words, place, world=3, code=0):
    process = launched(words, place, world)
    said, heard = process.communicate(timeout=400)
    assert process.returncode == code, heard[-3000:]
    return said, heard


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Shards of 40 and 20 pictures, a folder of 30, and a run of three processes over the shards."""
    root = tmp_path_factory.mktemp("three")
    for part, number, start in (("train", 0, 0), ("train", 1, 20), ("val", 0, 100)):
        shard(root / "shards" / f"{part}-{number:03d}.tar", start, 20)
    folder(root / "pictures", count=15)
    words = ["train", *NET, "--data", "wds:shards", "--epochs", "2", "--batch-size", "5", "--size", "16"]
    said, _ = done([*words, "--out", "run"], root)
    assert "epoch   every image once, 8 twice: the last batch of 3 processes is filled" in said
    return root


def last_line(said):
    return json.loads(said.strip().splitlines()[-1])


@pytest.mark.parametrize("data", ["wds:shards", "pictures"])
def test_three_processes_evaluate_what_one_does(place, data):
    words = ["evaluate", "run", "--data", data, "--split", "train", "--batch-size", "4", "--json"]
    if data == "pictures":
        (place / "names.txt").write_text("cat=1\ndog=2\n")
        words += ["--class-map", "names.txt"]
    alone, three = (last_line(done(words, place, world)[0]) for world in (1, 3))
    assert three == alone
    assert alone["metrics"]["count"] == (37 if data == "wds:shards" else 20)


def test_three_processes_predict_each_picture_once(place):
    for world, file in ((1, "one.csv"), (3, "three.csv")):
        said, _ = done(["predict", "run", "pictures", "--batch-size", "4", "--out", file, "--json"], place, world)
        assert len(last_line(said)["predictions"]) == 30
        assert said.count('{"verb": "predict"') == 1
    assert (place / "one.csv").read_bytes() == (place / "three.csv").read_bytes()
    assert len(list(csv.reader((place / "three.csv").open()))) == 31


def test_three_processes_find_each_route_once(place):
    words = ["explain", "run", "--data", "pictures", "--split", "train", "--limit", "7", "--batch-size", "2"]
    words += ["--class-map", "names.txt", "--steps", "12", "--show", "1", "--neighbours", "0", "--json"]
    (place / "names.txt").write_text("cat=1\ndog=2\n")
    for world in (1, 3):
        said, _ = done([*words, "--save", f"{world}.safetensors", "--out", f"why-{world}"], place, world)
        assert said.count('{"verb": "explain"') == 1
    alone, three = (load_file(place / f"{world}.safetensors") for world in (1, 3))
    assert alone.keys() == three.keys()
    assert all(torch.equal(alone[name], three[name]) for name in alone)
    assert not list(place.glob("*.parts"))
    assert (place / "why-3" / "report.html").is_file()
    done([*words, "--out", "why"], place, 3, code=1)  # torchrun's own code: the search of --save alone is shared


@pytest.mark.parametrize("killed", [0, 1])
def test_a_killed_process_ends_the_others_and_the_run_goes_on(place, killed):
    out = place / f"killed-{killed}"
    words = ["train", *NET, "--data", "pictures", "--epochs", "60", "--batch-size", "4", "--size", "16"]
    words += ["--checkpoint-every", "1", "--log-every", "1", "--out", out.name]
    process = launched(words, place, 3)
    until = time.monotonic() + 300
    while not any(step >= 3 for step in checkpoint.saved_steps(out)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < until
        time.sleep(0.02)
    victim = next(pid for pid in children(process.pid) if rank_of(pid) == str(killed))
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    _, heard = process.communicate(timeout=60)  # the rule: the others end within a minute
    print(f"ended after {time.monotonic() - began:.1f} s")
    assert process.returncode == 1
    # the launcher stops the others as soon as one of them has ended: one of the two is sure to be heard
    others = [f"error in process {other} of 3: another process of this run ended" for other in {0, 1, 2} - {killed}]
    assert any(said in heard for said in others)
    assert f"process {killed} (pid {victim} on " in heard
    assert f"--resume --out {out.name}" in heard
    assert f'File "{SOURCE}' not in heard  # torchrun shows a traceback of its own
    kept = checkpoint.saved_steps(out)[-1]
    assert kept >= 3
    _, heard = done([*words, "--resume"], place, world=2, code=1)  # torchrun's own code
    assert "processes: 3 then, 2 now" in heard
    assert checkpoint.saved_steps(out)[-1] == kept
    done([*words, "--resume"], place)
    if not (place / "whole").exists():
        done([*words[:-1], "whole"], place)
    one, other = ([row for row in read_history(f) if row["kind"] == "train"] for f in (out, place / "whole"))
    assert [(row["step"], row["loss"]) for row in one] == [(row["step"], row["loss"]) for row in other]
    last = checkpoint.saved_steps(out)[-1]
    weights = [checkpoint.load(f, last).weights for f in (out, place / "whole")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)


def children(parent):
    import psutil

    return [child.pid for child in psutil.Process(parent).children()]


def rank_of(pid):
    entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next((entry[5:].decode() for entry in entries if entry.startswith(b"RANK=")), None)
