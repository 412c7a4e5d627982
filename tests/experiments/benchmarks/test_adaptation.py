"""The suite runs in its quick form and measures what it says; both arms compute one loss."""

import json

from experiments import benchmarks


def test_the_suite_runs_and_compares_batched_with_looped():
    value = benchmarks.run_suite("adaptation", quick=True, threads=1)
    json.dumps(value, allow_nan=False)
    names = [case["name"] for case in value["cases"]]
    assert any("K=65, 256-256-1" in name for name in names)
    for case in value["cases"]:
        assert all(arm["median"] > 0 for arm in case["arms"].values())
    k65 = next(case for case in value["cases"] if "K=65" in case["name"])
    assert k65["ratios"]["batched"][1] < 1
