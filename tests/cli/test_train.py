"""A run from flags to report: what the folder holds, what evaluate says of it, Ctrl-C and going on."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from convsmith.cli import main
from convsmith.models.storage import load_model
from convsmith.report import Section
from convsmith.training import checkpoint
from convsmith.training.history import read_history

SOURCE = Path(__file__).parents[2] / "src"
WORDS = ("train", "--data", "digits", "--model-args", "width=4", "depth=8", "--augment", "digits", "--batch-size", "64")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A finished run of two epochs."""
    folder = tmp_path_factory.mktemp("train") / "run"
    assert main.main([*WORDS, "--epochs", "2", "--out", str(folder), "--seed", "3"]) == 0
    return folder


def test_the_run_folder_holds_settings_environment_log_weights_and_report(run):
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["verb"], config["epochs"], config["seed"]) == ("train", 2, 3)
    assert config["model_args"] == ["width=4", "depth=8"]
    assert (run / "config.yaml").read_text().startswith("# convsmith train --data digits")
    environment = json.loads((run / "environment.json").read_text())
    assert environment["command"].startswith("convsmith train --data digits")
    assert {"torch", "timm", "convsmith"} <= set(environment["versions"])
    rows = read_history(run)
    assert rows[-1]["step"] == 40
    (table,) = run.glob("*.csv")
    with table.open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert checkpoint.saved_steps(run)[-1] == 40
    result = json.loads((run / "result.json").read_text())
    assert result["headline"]["test images"] == 359
    low, high = result["metrics"]["intervals"]["top1"]
    assert low < result["metrics"]["top1"] < high
    titles = [Section.load(path).title for path in sorted((run / "sections").glob("*.json"))]
    assert titles == ["Result", "Classes", "Calibration", "Wrong examples"]
    page = (run / "report.html").read_text()
    assert "Learning curves" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_the_weights_load_by_folder_and_give_the_reported_accuracy(run, capsys):
    loaded = load_model(run)
    assert loaded.description["name"] == "digits"
    assert main.main(["evaluate", "--checkpoint", str(run), "--data", "digits", "--seed", "3", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    result = json.loads((run / "result.json").read_text())
    assert said["metrics"]["top1"] == result["metrics"]["top1"]
    assert said["metrics"]["confusion"] == result["metrics"]["confusion"]
    assert said["exit_code"] == 0


def test_evaluate_writes_a_run_folder_only_if_asked(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "--checkpoint", str(run / "model.safetensors"), "--data", "digits", "--split", "validation"]
    assert main.main(words) == 0
    assert list(tmp_path.iterdir()) == []
    assert "validation, 179 images" in capsys.readouterr().out
    assert main.main([*words, "--out", "check"]) == 0
    assert (tmp_path / "check" / "report.html").is_file()
    assert json.loads((tmp_path / "check" / "result.json").read_text())["split"] == "validation"


def test_the_settings_of_a_run_repeat_it_bit_by_bit(run, tmp_path):
    assert main.main(["train", "--config", str(run / "config.yaml"), "--out", str(tmp_path / "again")]) == 0
    first, second = (load_model(folder).model.state_dict() for folder in (run, tmp_path / "again"))
    assert all((first[name] == second[name]).all() for name in first)


def test_a_run_starts_from_the_weights_of_another(run, tmp_path, capsys):
    words = ["train", "--model", str(run), "--data", "digits", "--epochs", "1", "--lr", "1e-6", "--weight-decay", "0"]
    assert main.main([*words, "--out", str(tmp_path / "more"), "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    before = json.loads((run / "result.json").read_text())
    assert abs(said["metrics"]["top1"] - before["metrics"]["top1"]) < 0.08
    assert load_model(tmp_path / "more").recipe.kwargs["width"] == 4


def test_overwrite_replaces_the_run(run, tmp_path):
    folder = tmp_path / "run"
    words = [*WORDS, "--epochs", "1", "--limit", "64", "--out", str(folder)]
    assert main.main(words) == 0
    (folder / "stale.txt").write_text("x")
    assert main.main([*words, "--overwrite"]) == 0
    assert not (folder / "stale.txt").exists()


@pytest.mark.parametrize("named", ["weights", "saved"])
def test_weights_named_by_flag_go_before_the_published_ones_of_a_preset(run, named, tmp_path):
    chosen = ["--model", str(run)]
    if named == "weights":
        file = run / "model.safetensors"
        chosen = ["--model", "cs_resnet20", "--weights", str(file), "--model-args", "width=4", "depth=8", "in_chans=1"]
    words = ["train", "--preset", "linear-probe", *chosen, "--data", "digits", "--num-workers", "0"]
    assert main.main([*words, "--out", str(tmp_path / "probe")]) == 0
    then, now = (load_model(folder).model.state_dict() for folder in (run, tmp_path / "probe"))
    changed = {name for name in then if not (then[name] == now[name]).all()}
    assert changed == {"fc.weight", "fc.bias"}
    assert yaml.safe_load((tmp_path / "probe" / "config.yaml").read_text())["pretrained"] is True


def test_two_flags_that_both_name_weights_clash(run, capsys):
    assert main.main([*WORDS, "--pretrained", "--weights", str(run / "model.safetensors")]) == 2
    assert "leave --pretrained out" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main([*WORDS, "--epochs", "3", "--dry-run", "--json"]) == 0
    heard = capsys.readouterr().out
    said = json.loads(heard.splitlines()[-1])
    assert (said["steps"], said["run"]) == (60, "runs/train-1")
    assert f"{said['parameters']:,} parameters" in heard
    assert list(tmp_path.iterdir()) == []


def test_folders_are_made_up_in_order(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        assert main.main([*WORDS, "--epochs", "1", "--limit", "64"]) == 0
    assert sorted(p.name for p in Path("runs").iterdir()) == ["train-1", "train-2"]


def test_a_broken_file_is_skipped_by_name_if_asked(tmp_path, capsys):
    from tests.cli.test_bad_inputs import folder_of

    root = folder_of(tmp_path / "pictures", images=12)
    (root / "a" / "3.png").write_bytes((root / "a" / "3.png").read_bytes()[:60])
    words = ["train", "--data", f"imagefolder:{root}", "--model-args", "width=4", "depth=8", "--epochs", "1"]
    assert main.main([*words, "--batch-size", "4", "--broken", "skip", "--out", str(tmp_path / "run")]) == 0
    assert "skipped a broken image: " in capsys.readouterr().err


def started(words, cwd):
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "convsmith", *words],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_step(run, process):
    until = time.monotonic() + 60
    while time.monotonic() < until and process.poll() is None:
        if max(checkpoint.saved_steps(run), default=0) > 0:
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


LONGER = (*WORDS, "--epochs", "16", "--limit", "320")


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    """The weights of 80 updates in one go."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    assert main.main([*LONGER, "--out", str(folder)]) == 0
    return load_model(folder).model.state_dict()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_resume_ends_with_the_same_weights(number, uninterrupted, tmp_path):
    part = tmp_path / "part"
    process = started([*LONGER, "--checkpoint-every", "1", "--out", "part"], tmp_path)
    wait_for_step(part, process)
    os.kill(process.pid, number)
    _, heard = process.communicate(timeout=60)
    assert process.returncode == 130, heard
    assert "the state is saved" in heard
    assert "convsmith train --out part --resume" in heard
    assert "Traceback" not in heard
    assert not (part / "model.safetensors").exists()
    assert 0 < checkpoint.saved_steps(part)[-1] < 80
    assert main.main(["train", "--out", str(part), "--resume", "--checkpoint-every", "1000"]) == 0
    resumed = load_model(part).model.state_dict()
    assert all((resumed[name] == uninterrupted[name]).all() for name in resumed)
    assert (part / "environment-resumed-1.json").is_file()


def test_resuming_a_finished_run_evaluates_it_again(run, capsys):
    before = json.loads((run / "result.json").read_text())["metrics"]
    assert main.main(["train", "--out", str(run), "--resume"]) == 0
    assert json.loads((run / "result.json").read_text())["metrics"] == before


def test_two_processes_write_one_run(tmp_path):
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "convsmith"]
    environment = {"PYTHONPATH": str(SOURCE), "PATH": "/usr/bin:/bin", "OMP_NUM_THREADS": "1"}
    words = [*WORDS, "--epochs", "1", "--limit", "256", "--batch-size", "32", "--device", "cpu", "--out", "run"]
    done = subprocess.run(
        [sys.executable, *launch, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "run" / "report.html").is_file()
    assert done.stdout.count("report  run/report.html") == 1
    assert read_history(tmp_path / "run")[-1]["step"] == 4


def test_pooling_arguments_reach_the_network_and_its_recipe(tmp_path):
    folder = tmp_path / "run"
    words = [*WORDS, "--epochs", "1", "--limit", "64", "--pooling", "isqrt-cov", "--pooling-dim", "8"]
    options = ["--pooling-args", "iterations=3", "isometric=true", "normalization=frobenius"]
    assert main.main([*words, *options, "--out", str(folder)]) == 0
    loaded = load_model(folder)
    given = {"iterations": 3, "isometric": True, "normalization": "frobenius"}
    assert {key: loaded.recipe.pooling[key] for key in given} == given
    pooling = loaded.model.pooling
    assert (pooling.iterations, pooling.isometric, pooling.normalization, pooling.dim) == (3, True, "frobenius", 8)
    assert yaml.safe_load((folder / "config.yaml").read_text())["pooling_args"] == options[1:]
