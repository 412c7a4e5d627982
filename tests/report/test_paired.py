"""Two runs on the same images: the difference in pairs, against a direct reading, and the sentence on it."""

import numpy as np
import pytest

from convsmith.report import build_report
from convsmith.report.paired import Outcomes, compared, difference, read_outcomes, write_outcomes
from tests.report.test_build import make_run


def outcomes(correct, data="digits", start=0):
    return Outcomes(data, "test", list(range(start, start + len(correct))), list(correct))


def test_the_interval_is_of_differences_image_by_image():
    a = np.tile([1, 0], 100)
    b = np.where(np.arange(200) < 10, 1 - a, a)  # ten images change, five each way
    middle, low, high = difference(outcomes(a), outcomes(b))
    assert middle == 0
    assert low < 0 < high
    alone = 1.96 * np.sqrt(2 * 0.25 / 200)  # the interval if the images were not the same
    assert high - low < alone


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        ([0] * 50 + [1] * 50, [1] * 100, "two is better than one: +50.00 points ("),
        ([1] * 100, [0] * 50 + [1] * 50, "two is worse than one: -50.00 points ("),
        ([1, 0] * 50, [0, 1] * 50, "two is not better than one within the interval: +0.00 points ("),
    ],
)
def test_the_verdict_stands_in_the_report_of_both(a, b, said, tmp_path):
    runs = [make_run(tmp_path, name, 0.1, [2.0, 1.0]) for name in ("one", "two")]
    for run, correct in zip(runs, (a, b), strict=True):
        write_outcomes(run, outcomes(correct))
        assert read_outcomes(run) == outcomes(correct)
    page = build_report(runs, tmp_path / "both.html").read_text()
    assert said in page
    assert "in pairs over 100 images" in page
    assert page.index(said) < page.index("Settings that differ" if "Settings that differ" in page else "</main>")


def test_runs_that_cannot_be_compared_say_why():
    assert compared("one", None, "two", None) is None
    assert "one has no outcomes.json" in str(compared("one", None, "two", outcomes([1])))
    assert "different images" in str(compared("one", outcomes([1, 0]), "two", outcomes([1, 0], start=5)))
    assert "different images" in str(compared("one", outcomes([1, 0]), "two", outcomes([1, 0], data="other")))
