"""Successive halving: which runs are made, what decides, and a stopped search that goes on."""

import signal

import pytest

from convsmith.adaptation import search as module
from convsmith.adaptation.search import grid, rungs, search
from convsmith.errors import InvalidArgument
from tests.adaptation.worlds import network, world

COMMON = {"batch_size": 12, "lr": 0.05, "device": "cpu"}


def test_grid_and_rungs():
    assert grid({"a": [1, 2], "b": ["x", "y"]}) == [
        {"a": 1, "b": "x"},
        {"a": 1, "b": "y"},
        {"a": 2, "b": "x"},
        {"a": 2, "b": "y"},
    ]
    assert rungs(9, 900, 1 / 3) == [(9, 300), (3, 900)]
    assert rungs(27, 900, 1 / 3) == [(27, 100), (9, 300), (3, 900)]
    assert rungs(1, 50, 1 / 3) == [(1, 50)]


def test_the_best_by_the_validator_goes_on_and_a_stopped_search_continues(tmp_path, monkeypatch):
    source, target = world(n=100, m=60)
    values = {"entropy": [0.0, 0.1, 0.3, 1.0]}
    arguments = {
        "method": "san",
        "values": values,
        "steps": 80,
        "keep": 0.5,
        "seeds": (0, 1),
        "hidden": (6,),
        **COMMON,
    }
    whole = search(network(), source, target, **arguments)
    first, last = [t for t in whole.trials if t.steps == 40], [t for t in whole.trials if t.steps == 80]
    assert (len(first), len(last)) == (4, 2)
    kept = sorted(first, key=lambda t: -t.score)[:2]
    assert {t.settings["entropy"] for t in kept} == {t.settings["entropy"] for t in last}
    assert whole.best == max(last, key=lambda t: t.score)
    assert all(t.oracle == () for t in whole.trials)

    file, calls = tmp_path / "search.jsonl", []
    real = module.adapt

    def counted(*args, **kwargs):
        calls.append(kwargs["method"])
        if len(calls) == 8:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(module, "adapt", counted)
    with pytest.raises(KeyboardInterrupt):
        search(network(), source, target, out=file, **arguments)
    done = len(file.read_text().splitlines())
    file.write_text(file.read_text() + '{"key": "half a li')
    calls[:] = ["go on"] * 8
    resumed = search(network(), source, target, out=file, **arguments)
    assert resumed == whole
    assert calls.count("san") == 12 - done
    assert search(network(), source, target, out=file, **arguments) == whole  # what was appended is whole too
    assert calls.count("san") == 12 - done


def test_an_interruption_ends_the_search_and_is_no_finished_run(tmp_path, monkeypatch):
    file, real = tmp_path / "search.jsonl", module.adapt
    stop = lambda done, total, note: signal.raise_signal(signal.SIGINT)  # noqa: E731
    monkeypatch.setattr(module, "adapt", lambda *a, **k: real(*a, **k, progress=stop if k["method"] == "dan" else None))
    with pytest.raises(KeyboardInterrupt):
        search(
            network(), *world(), method="dan", values={"weight": [0.1, 1.0]}, steps=400, seeds=(0,), out=file, **COMMON
        )
    assert not file.exists()


def test_runs_of_another_network_or_other_data_are_not_taken_for_these(tmp_path):
    arguments = {"method": "dan", "values": {"weight": [0.1]}, "steps": 10, "seeds": (0,), **COMMON}
    files = [tmp_path / "one", tmp_path / "one", tmp_path / "other"]
    first, second, alone = (
        search(name, *world(n=n), out=str(file), **arguments).best
        for name, n, file in zip(("cs_lenet", "cs_lenet", "cs_lenet"), (60, 80, 80), files, strict=True)
    )
    assert first.scores != second.scores == alone.scores
    named = search("cs_resnet20", *world(n=60), out=tmp_path / "one", **arguments).best
    assert named.scores != first.scores


def test_source_only_shares_the_recipe_and_not_the_variant(monkeypatch):
    calls, real = [], module.adapt
    monkeypatch.setattr(module, "adapt", lambda *a, **k: calls.append(real(*a, **k)) or calls[-1])
    more = {"variant": "caffe", "head_lr_mult": 3.0, "hidden": (4,), **COMMON}
    search(network(), *world(), method="san", values={"entropy": [0.1]}, steps=10, seeds=(0,), **more)
    assert [(r.method, r.settings.head_lr_mult) for r in calls] == [("source-only", 3.0), ("san", 3.0)]


def test_bad_input_is_one_clear_error():
    source, target = world()
    for changes, rule in (
        ({"validator": "acc"}, "no validator"),
        ({"method": "sann"}, "did you mean 'san'"),
        ({"values": {"entropi": [1]}}, "did you mean 'entropy'"),
        ({"values": {"entropy": []}}, "needs candidates"),
        ({"keep": 1.0}, "needs candidates"),
    ):
        with pytest.raises(InvalidArgument, match=rule):
            search(network(), source, target, **{"method": "san", "values": {"entropy": [0.1]}, **changes})


def test_a_damaged_file_of_finished_runs_is_named(tmp_path):
    source, target = world()
    file = tmp_path / "trials.jsonl"
    file.write_text('{"key": 3}\n{"key": "x", "found": {"score": 1.0, "oracle": null}}\n')
    with pytest.raises(InvalidArgument, match=r"trials\.jsonl, line 1"):
        search(
            network(), source, target, method="dan", values={"weight": [0.1]}, steps=2, seeds=(0,), out=file, **COMMON
        )
