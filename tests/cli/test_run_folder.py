"""What is refused before a run folder is touched, what is written first, and what may change when a run goes on."""

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import yaml

from convsmith.cli.shell import lock, options, run_folder
from convsmith.cli.shell.options import Work, option
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.training.config import RESUME_FREE


@dataclass(frozen=True, kw_only=True)
class Arguments(Work):
    """Do something."""

    lr: float = option(0.1, "step size")
    images: tuple[str, ...] = option((), "files")


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    lock.release()


def test_what_may_change_in_the_loop_may_change_on_the_command_line():
    assert RESUME_FREE <= run_folder.RESUME_FREE


def test_a_run_begins_with_its_settings_and_environment():
    folder = run_folder.open_run("work", Arguments(images=("a", "b")))
    assert str(folder) == "runs/work-1"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config == {
        "verb": "work", "lr": 0.1, "images": ["a", "b"], "out": "runs/work-1", "seed": 0, "device": "auto"
    }  # fmt: skip
    assert (folder / "environment.json").is_file()


def test_check_touches_nothing(tmp_path):
    assert str(run_folder.check("work", Arguments(out="deep/run"))) == "deep/run"
    assert list(tmp_path.iterdir()) == []


def test_going_on_keeps_the_settings_and_refuses_other_ones():
    first = Arguments(out="run")
    folder = run_folder.open_run("work", first)
    before = (folder / "config.yaml").read_text()
    run_folder.open_run("work", replace(first, resume=True, device="cpu"))
    assert (folder / "config.yaml").read_text() == before
    assert (folder / "environment-resumed-1.json").is_file()
    with pytest.raises(InvalidArgument, match=r"lr: 0.1 then, 0.3 now"):
        run_folder.check("work", replace(first, resume=True, lr=0.3))
    with pytest.raises(InvalidArgument, match="seed: 0 then, 1 now"):
        run_folder.check("work", replace(first, resume=True, seed=1))


def test_a_refused_run_leaves_nothing_but_a_resumed_one_stays():
    folder = run_folder.open_run("work", Arguments(out="run"))
    run_folder.discard(folder, Arguments(out="run", resume=True))
    assert folder.is_dir()
    run_folder.discard(folder, Arguments(out="run"))
    assert not folder.exists()


def test_a_run_folder_can_stand_for_its_settings_file():
    folder = run_folder.open_run("work", Arguments(out="run", lr=0.7))
    assert options.parse("work", Arguments, ["--config", str(folder), "--out", "other"]).lr == 0.7


def test_several_processes_need_a_named_folder(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InvalidArgument, match="several processes"):
        run_folder.check("work", Arguments())


def test_an_interrupted_run_says_how_to_go_on():
    text = str(run_folder.Interrupted("train", "runs/x", "stopped after 3 of 9 updates"))
    assert text == (
        "stopped after 3 of 9 updates; the state is saved\n  go on with: convsmith train --out runs/x --resume"
    )


HOLDER = """
import sys, time
from convsmith.cli.shell import run_folder
from convsmith.cli.shell.options import Work
run_folder.open_run("work", Work(out="run"))
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_that_another_process_writes_is_neither_overwritten_nor_resumed(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(run_folder.__file__).parents[3])}
    holder = subprocess.Popen([sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert holder.stdout.readline().strip() == "held"
        for words in ({"overwrite": True}, {"resume": True}, {}):
            with pytest.raises(InvalidArgument, match=f"another process is writing(.|\n)*process {holder.pid}"):
                run_folder.check("work", Work(out="run", **words))
        assert (tmp_path / "run/config.yaml").is_file()
    finally:
        holder.kill()
        holder.wait()
    run_folder.open_run("work", Work(out="run", overwrite=True))  # a killed run's lock ended with it
    lock.release()
    assert not (tmp_path / "run/.lock").exists()


def test_a_run_killed_before_it_began_leaves_a_folder_that_is_taken(tmp_path):
    (tmp_path / "run").mkdir()
    for name in (".lock", ".config.yaml.123.draft"):
        (tmp_path / "run" / name).touch()
    assert (run_folder.open_run("work", Arguments(out="run")) / "config.yaml").is_file()


def test_drafts_of_a_killed_run_are_gone_when_it_goes_on():
    folder = run_folder.open_run("work", Arguments(out="run"))
    (folder / "sections").mkdir()
    for name in (".result.json.17.draft", "sections/.10-result.json.17.draft", "sections/10-result.json"):
        (folder / name).touch()
    run_folder.open_run("work", Arguments(out="run", resume=True))
    assert not list(folder.rglob("*.draft"))
    assert (folder / "sections/10-result.json").is_file()


def test_a_folder_in_which_a_run_is_said_to_go_on_stays():
    """Regression: an audit stopped in its first chapter named a folder that was then removed."""

    def command():
        with run_folder.closing("work", Arguments(out="run")):
            folder = run_folder.open_run("work", Arguments(out="run"))
            raise run_folder.Interrupted("work", folder, "stopped in chapter 1")

    with pytest.raises(run_folder.Interrupted):
        command()
    run_folder.check("work", Arguments(out="run", resume=True))


@pytest.mark.parametrize("error", [InvalidArgument("no"), RuntimeError("bug"), KeyboardInterrupt()])
def test_a_command_that_fails_before_its_first_file_leaves_no_folder(error):
    def command(*files, **words):
        arguments = Arguments(out="run", **words)
        with run_folder.closing("work", arguments):
            folder = run_folder.open_run("work", arguments)
            for name in files:
                (folder / name).touch()
            raise error

    for files, words, left in (((), {}, False), (("history.csv",), {}, True), ((), {"resume": True}, True)):
        with pytest.raises(type(error)) as caught:
            command(*files, **words)
        if isinstance(error, KeyboardInterrupt):  # between two savings it said no more than "interrupted"
            assert ("go on with: convsmith work --out run --resume" in str(caught.value)) == left
        assert Path("run").exists() == left
        assert not Path("run/.lock").exists()


def test_bad_input_after_the_first_number_is_a_failed_run_and_keeps_the_folder():
    folder = run_folder.open_run("work", Arguments(out="run"))
    with pytest.raises(InvalidArgument), run_folder.beginning(folder, Arguments(out="run")):
        raise InvalidArgument("no")
    assert not folder.exists()
    folder = run_folder.open_run("work", Arguments(out="run"))

    def work():
        (folder / "history.jsonl").write_text('{"step": 1}\n')
        raise InvalidArgument("the features are not finite", argument="x")

    with pytest.raises(RunFailed, match="not finite") as caught, run_folder.beginning(folder, Arguments(out="run")):
        work()
    assert caught.value.exit_code == 1
    assert folder.is_dir()


def test_a_resume_that_is_refused_before_its_first_number_is_bad_input_and_keeps_the_folder():
    folder = run_folder.open_run("work", Arguments(out="run"))
    (folder / "history.jsonl").write_text('{"step": 1}\n')
    with pytest.raises(InvalidArgument), run_folder.beginning(folder, Arguments(out="run", resume=True)):
        raise InvalidArgument("processes: 3 then, 2 now")
    assert (folder / "history.jsonl").is_file()
