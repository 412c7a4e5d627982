"""The rule of redundancy/without-labels on made-up numbers."""

import pytest

from experiments.studies import redundancy_without_labels as study


@pytest.mark.parametrize(
    ("reached", "verdict"),
    [
        ({"int8": True, "low rank": True}, "reproduced"),
        ({"int8": True, "low rank": False}, "partly"),
        ({"int8": False}, "not reproduced"),
        ({}, "not reproduced"),
    ],
)
def test_the_rule(reached, verdict):
    assert study.decide(reached) == verdict


def test_arms_that_are_judged_have_the_numbers_of_the_claim():
    judged = {arm: least for arm, (_, _, least) in study.ARMS.items() if least is not None}
    assert judged["int8"] == 0.95
    assert sorted(judged.values()) == [0.8, 0.8, 0.85, 0.95]
