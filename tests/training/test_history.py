import csv
import json

from convsmith.training.history import History, read_history


def table(run):
    with (run / "history.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_rows_appear_in_both_files_as_they_come(tmp_path):
    history = History(tmp_path)
    history.add({"kind": "train", "step": 1, "loss": 0.5})
    history.add({"kind": "evaluation", "step": 1, "accuracy": float("nan")})
    history.add({"kind": "train", "step": 2, "loss": float("inf")})
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in lines] == [1, 1, 2]
    assert lines[1]["accuracy"] is None
    assert lines[2]["loss"] is None
    rows = table(tmp_path)
    assert list(rows[0]) == ["kind", "step", "loss", "accuracy"]
    assert [row["loss"] for row in rows] == ["0.5", "", ""]


def test_reading_leaves_out_a_line_cut_off_by_a_kill_and_what_came_after_the_checkpoint(tmp_path):
    history = History(tmp_path)
    for step in (1, 2, 3):
        history.add({"kind": "train", "step": step})
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"kind": "train", "st')
    assert [r["step"] for r in read_history(tmp_path)] == [1, 2, 3]
    rows = read_history(tmp_path, up_to=2)
    assert [r["step"] for r in rows] == [1, 2]
    History(tmp_path, rows)
    assert [r["step"] for r in table(tmp_path)] == ["1", "2"]
    assert read_history(tmp_path / "nowhere") == []


def test_in_memory_only():
    history = History(None)
    history.add({"kind": "train", "step": 1})
    assert history.rows == [{"kind": "train", "step": 1}]
