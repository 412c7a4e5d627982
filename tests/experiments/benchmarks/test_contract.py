import json
import time

import pytest
import torch

from convsmith.errors import InvalidArgument
from experiments.benchmarks import SUITES, Bench, peak_bytes, run_suite, saved_bytes
from experiments.benchmarks.contract import quartiles


def test_quartiles_interpolate():
    assert quartiles([4.0, 1.0, 3.0, 2.0, 5.0]) == (2.0, 3.0, 4.0)
    assert quartiles([1.0, 2.0]) == (1.25, 1.5, 1.75)


def test_arms_are_measured_in_turn_and_the_baseline_has_ratio_one():
    order = []
    bench = Bench(quick=True)
    case = bench.compare(
        "case",
        {"a": lambda: (order.append("a"), time.sleep(0.006)), "b": lambda: (order.append("b"), time.sleep(0.012))},
        baseline="a",
        memory=False,
    )
    assert case.ratios["a"] == (1.0, 1.0, 1.0)
    assert case.ratios["b"][1] > 1.2
    assert "".join(order[-6:]) == "ababab"


def test_an_unknown_baseline_is_refused():
    with pytest.raises(InvalidArgument, match="baseline"):
        Bench(quick=True).compare("case", {"a": lambda: None}, baseline="b")


def test_peak_counts_tensors_alive_at_once():
    x = torch.randn(100, 100)

    def work():
        first = x + 1
        second = first * 2
        del first
        return second + 1

    assert peak_bytes(work) == 2 * 40_000


def test_saved_bytes_counts_each_storage_once():
    w = torch.randn(100, 100, requires_grad=True)
    assert saved_bytes(lambda: w.exp()) == 40_000
    assert saved_bytes(lambda: (w * w).sum()) == 40_000


def test_a_suite_is_strict_json_with_its_conditions(tmp_path):
    @SUITES.register("only-here")
    def suite(bench):
        """A suite for this test."""
        bench.compare("add", {"add": lambda: torch.ones(3) + 1}, baseline="add", settings={"n": 3}, aim="1")

    try:
        run_suite("only-here", quick=True, results=tmp_path)
    finally:
        SUITES._entries.pop("only-here")
    (path,) = tmp_path.iterdir()
    assert path.name.startswith("only-here--")
    capability = torch.backends.cpu.get_cpu_capability().lower()
    assert path.name.endswith(f"--cpu-{capability}--quick.json")
    value = json.loads(path.read_text(), parse_constant=lambda name: pytest.fail(name))
    assert value["conditions"]["capability"] == capability
    assert value["conditions"]["threads"] == torch.get_num_threads()
    assert value["conditions"]["versions"]["torch"].startswith(torch.__version__.split("+")[0])
    (case,) = value["cases"]
    assert case["arms"]["add"]["median"] > 0
    assert case["settings"] == {"n": 3}
