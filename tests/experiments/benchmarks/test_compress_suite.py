"""The suite's quick form measures what it says."""

from experiments.benchmarks import compress, run_suite


def test_quick_form():
    assert compress.WAYS["int8"] == ("int8", {})
    value = run_suite("compress", quick=True, threads=1)
    (case,) = value["cases"]
    assert case["name"] == "cs_resnet20, eager, batch 1"
    assert 0.485 <= case["settings"]["MACs kept"]["filters pruned"] <= 0.5
    assert case["ratios"]["original"] == (1.0, 1.0, 1.0)
    assert "random" in value["notes"][0]
