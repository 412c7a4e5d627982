"""The suite's quick form measures what it says."""

import pytest

from experiments.benchmarks import run_suite


@pytest.mark.slow
def test_quick_form():
    pytest.importorskip("onnxruntime")
    value = run_suite("latency", quick=True, threads=1)
    (case,) = value["cases"]
    assert case["name"] == "resnet18, batch 2"
    assert case["ratios"]["original"] == (1.0, 1.0, 1.0)
    assert set(case["arms"]) <= {"original", "filters pruned", "int8"}
