import json

import pytest

from convsmith.cli.main import main
from experiments.__main__ import PROGRAM
from experiments.benchmarks import SUITES
from experiments.studies import STUDIES, Outcome, study


@pytest.fixture
def toys():
    @SUITES.register("toy-suite")
    def suite(bench):
        """A suite for this test."""
        bench.compare("case", {"plain": lambda: None, "ours": lambda: None}, baseline="plain")

    @study("toy/stops", claim="It works.", source="here", rule="always", data="none")
    def run(running):
        """A study that is stopped once."""
        running.cell("one", lambda: 1)
        if not running.cells.get("two"):
            running.cell("two", lambda: 2)
            raise KeyboardInterrupt
        return Outcome("reproduced", "two cells")

    yield
    SUITES._entries.pop("toy-suite")
    STUDIES._entries.pop("toy/stops")


def test_bench_lists_runs_and_writes(toys, tmp_path, capsys):
    assert main(["bench"], PROGRAM) == 0
    assert "toy-suite" in capsys.readouterr().out
    assert main(["bench", "toy-suite", "--quick", "--out", str(tmp_path), "--json"], PROGRAM) == 0
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last["suites"]["toy-suite"]["cases"][0]["baseline"] == "plain"
    assert len(list(tmp_path.glob("toy-suite--*.json"))) == 1


def test_a_mistake_is_told_by_the_name_of_the_program(capsys):
    assert main(["bench", "--foo"], PROGRAM) == 2
    assert "python -m experiments bench --help lists its flags" in capsys.readouterr().err


def test_a_stopped_study_ends_with_130_and_goes_on(toys, tmp_path, capsys):
    words = ["study", "toy/stops", "--out", str(tmp_path)]
    assert main(words, PROGRAM) == 130
    assert "go on with: python -m experiments study toy/stops" in capsys.readouterr().err
    (cells,) = (tmp_path / "cells").iterdir()
    cells.write_text(cells.read_text() + '{"key": "three", "sec')  # killed while it wrote
    assert main(words, PROGRAM) == 0
    assert "reproduced" in capsys.readouterr().out
    assert "It works." in (tmp_path / "results.html").read_text()


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["bench", "toy-sweet"], "toy-suite"),
        (["bench", "toy-suite", "--threads", "0"], "at least one thread"),
        (["study", "toy/stop"], "toy/stops"),
        (["study", "toy/stops", "--seeds", "0"], "at least one seed"),
        (["study", "toy/stops", "--device", "cuda:99"], "does not have the device"),
        (["bench", "toy-suite", "--device", "gpu"], "no device has this name"),
    ],
)
def test_bad_input_is_refused_with_code_2(toys, tmp_path, capsys, words, text):
    assert main([*words, "--out", str(tmp_path / "new")], PROGRAM) == 2
    assert text in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
