import json

import numpy as np
import pytest
from scipy import stats

from convsmith.errors import InvalidArgument
from convsmith.report.section import Table
from experiments.studies import STUDIES, Outcome, interval, paired_difference, run_study, study


def test_the_interval_is_students():
    values = [1.0, 2.0, 4.0, 9.0]
    found = interval(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.n) == (4.0, 4)
    assert found.low == pytest.approx(low)
    assert found.high == pytest.approx(high)
    assert str(interval([3.0])) == "3.00 (one seed)"


def test_the_paired_difference_removes_what_the_seeds_share():
    first, second = [10.0, 20.0, 30.0], [9.0, 19.0, 29.0]
    assert paired_difference(first, second).low == pytest.approx(1.0)


@pytest.fixture
def toy():
    calls = []

    @study("toy/claim", claim="c", source="s", rule="r", data="d")
    def run(running):
        """A toy."""
        values = []
        for seed in running.seeds:

            def work(seed=seed):
                calls.append(seed)
                if seed == 1 and calls.count(1) == 1:
                    raise KeyboardInterrupt
                return seed * 2

            values.append(running.cell(f"seed {seed}", work))
        return Outcome("reproduced", f"sum {sum(values)}", [Table(["seed"], [[s] for s in running.seeds])])

    yield calls
    STUDIES._entries.pop("toy/claim")


def test_an_interrupted_study_goes_on_where_it_stopped(tmp_path, toy):
    with pytest.raises(KeyboardInterrupt):
        run_study("toy/claim", seeds=3, results=tmp_path)
    value = run_study("toy/claim", seeds=3, results=tmp_path)
    assert toy == [0, 1, 1, 2]
    assert value["verdict"] == "reproduced"
    assert value["summary"] == "sum 6"
    assert value["cells"] == {"seed 0": 0, "seed 1": 2, "seed 2": 4}
    assert json.loads((tmp_path / "toy-claim--full--cpu.json").read_text()) == value
    assert not list((tmp_path / "cells").iterdir())


def test_cells_that_a_kill_left_beside_the_result_are_cleared(tmp_path, toy):
    toy.append(1)  # nothing stops the toy
    value = run_study("toy/claim", seeds=2, results=tmp_path)
    left = tmp_path / f"cells/toy-claim--full--cpu--{value['fingerprint']}.jsonl"
    left.touch()
    assert run_study("toy/claim", seeds=2, results=tmp_path) == value
    assert not left.exists()


def test_a_finished_study_is_not_run_again_unless_its_conditions_changed(tmp_path, toy):
    toy.append(1)
    run_study("toy/claim", seeds=2, results=tmp_path)
    count = len(toy)
    run_study("toy/claim", seeds=2, results=tmp_path)
    assert len(toy) == count
    run_study("toy/claim", seeds=3, results=tmp_path)
    assert len(toy) == count + 3
    run_study("toy/claim", seeds=3, results=tmp_path, again=True)
    assert len(toy) == count + 6


def test_an_unknown_study_offers_the_close_ones(tmp_path, toy):
    with pytest.raises(InvalidArgument, match="toy/claim"):
        run_study("toy/clam", results=tmp_path)


def test_a_long_study_takes_fewer_seeds_in_its_quick_form_and_says_so(tmp_path):
    @study("toy/long", claim="c", source="s", rule="r", data="d", quick_seeds=1)
    def run(running):
        """A toy."""
        return Outcome("reproduced", "", [])

    try:
        assert run_study("toy/long", quick=True, results=tmp_path)["seeds"] == [0]
        assert run_study("toy/long", results=tmp_path)["seeds"] == [0, 1, 2, 3, 4]
    finally:
        STUDIES._entries.pop("toy/long")
