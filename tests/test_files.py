"""Files are whole or not there, have the umask's mode, and damaged JSON is one clear error."""

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from convsmith import files
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.training.checkpoint import Checkpoint, Position, save


def test_a_file_is_replaced_whole_and_keeps_what_was_there_when_writing_fails(tmp_path):
    path = tmp_path / "result.json"
    files.write_json(path, {"a": 1})

    def stopped():
        with files.replacing(path) as draft:
            draft.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        stopped()
    with pytest.raises(ValueError, match=r"Out of range|JSON"):
        files.write_json(path, {"a": float("nan")})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def test_the_draft_of_a_killed_process_is_cleared_and_that_of_a_running_one_stays(tmp_path):
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    dead, running, other = (tmp_path / f".{name}.draft" for name in (f"a.{gone.pid}", "a.1", f"b.{gone.pid}"))
    for draft in (dead, running, other):
        draft.touch()
    files.write_text(tmp_path / "a", "text")
    assert sorted(tmp_path.iterdir()) == sorted([running, other, tmp_path / "a"])


def test_a_line_that_a_kill_cut_off_is_taken_out_before_others_are_appended(tmp_path):
    log = tmp_path / "log.jsonl"
    assert files.whole_lines(log) == []
    assert not log.exists()
    log.write_text('{"a": 1}\n{"a": 2}\n{"a": ')
    assert files.whole_lines(log) == ['{"a": 1}', '{"a": 2}']
    with log.open("a") as file:
        file.write('{"a": 3}\n')
    assert files.whole_lines(log)[-1] == '{"a": 3}'


def test_the_mode_is_the_umasks(tmp_path):
    before = os.umask(0o027)
    try:
        files.write_text(tmp_path / "a", "text")
        with files.replacing(tmp_path / "b") as draft:
            save_file({"a": torch.zeros(1)}, draft)  # which writes a private file and renames it
    finally:
        os.umask(before)
    for path in tmp_path.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_checkpoints_have_the_mode_of_the_umask(tmp_path):
    before = os.umask(0o027)
    try:
        one = Checkpoint(Position(step=1, epoch=0, batch=1), {}, {"a": torch.zeros(1)}, {})
        place = save(tmp_path, one, keep_last=1)
    finally:
        os.umask(before)
    assert {stat.S_IMODE(path.stat().st_mode) for path in place.iterdir()} == {0o640}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_is_a_failed_run_with_a_hint(tmp_path):
    def written():
        with files.replacing(tmp_path / "a") as draft:
            draft.unlink()
            draft.symlink_to("/dev/full")
            draft.write_text("text")

    with pytest.raises(RunFailed, match=r"No space left(.|\n)*make room") as caught:
        written()
    assert caught.value.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "it is no JSON"),
        (b"\xff\xfe", "it is no JSON"),
        (b"[1]", "no JSON object"),
        (b"null", "no JSON object"),
        (b"{}", "lacks 'title'"),
        (b'{"title": 1}', "'title' must be text"),
        (b'{"title": "a", "count": true}', "'count' must be a whole number"),
        (b'{"title": "a", "count": ' + b"[" * 100000, "it is no JSON"),
    ],
)
def test_damaged_json_is_one_clear_error(text, said, tmp_path):
    path = tmp_path / "x.json"
    path.write_bytes(text)
    with pytest.raises(InvalidArgument, match=said) as caught:
        files.read_json(path, "a section", {"title": str, "count": int})
    assert len(str(caught.value).splitlines()) <= 4
