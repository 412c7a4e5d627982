"""What is refused before a run folder is touched, what is written first, and what may change when a run goes on."""

from dataclasses import dataclass, replace

import pytest
import yaml

from convsmith.cli.shell import options, run_folder
from convsmith.cli.shell.options import Work, option
from convsmith.errors import InvalidArgument
from convsmith.training.config import RESUME_FREE


@dataclass(frozen=True, kw_only=True)
class Arguments(Work):
    """Do something."""

    lr: float = option(0.1, "step size")
    images: tuple[str, ...] = option((), "files")


@pytest.fixture(autouse=True)
def _inside(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


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
