"""The rule of together/photographs on made-up numbers."""

import pytest

from experiments.studies import together_photographs as study

GOOD = {
    **{key: 50.0 for _, key in study._ROWS},
    "source_sharp": 60.0,
    "target_san": 55.0,
    "target_int8": 54.5,
    "kept": 100.0,
    "critical_share": 10.0,
    "open_share": 100.0,
    "detector_auroc": 90.0,
}


@pytest.mark.parametrize(
    ("change", "verdict", "missed"),
    [
        ({}, "reproduced", "none"),
        ({"open_share": 90.0}, "partly", "explained"),
        ({"source_sharp": 49.0, "target_san": 54.0, "target_sharp": 54.5}, "partly", "sharper, portable"),
        ({"int8_time": 70.0, "kept": 99.0, "detector_auroc": 79.0}, "not reproduced", "leaner, explained, guarded"),
    ],
)
def test_the_rule(change, verdict, missed):
    found, table, summary = study.judged([{**GOOD, **change}] * 3)
    assert found == verdict
    assert f"(missed: {missed})" in summary
    assert [row[2] for row in table.rows].count("holds") == 5 - (0 if missed == "none" else missed.count(",") + 1)
