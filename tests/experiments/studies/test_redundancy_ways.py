"""The rule of redundancy/ways on made-up numbers, and one cell for real."""

import pytest

from experiments.studies import redundancy_ways as ways
from experiments.studies.contract import STUDIES

GOOD, BAD = (0.2, 0.9), (3.0, 4.0)


def test_registered_with_a_rule():
    assert "at most 1 point" in STUDIES.entry("redundancy/ways").traits["rule"]


def test_the_rule():
    every = dict.fromkeys(ways.ARMS, GOOD)
    assert ways.decide(every) == "reproduced"
    assert ways.decide({**every, "binary": BAD, "ternary": BAD}) == "reproduced"
    assert ways.decide({**every, "2:4 sparse": BAD}) == "partly"
    assert ways.decide({**every, "interleaved, half the MACs": BAD}) == "not reproduced"
    assert ways.decide({**every, "int8": (0.5, 2.5)}) == "partly"
    assert ways.decide({**every, "int8": BAD, "int8 weights": BAD}) == "not reproduced"
    assert ways.decide(dict.fromkeys(ways.QUICK, GOOD)) == "reproduced"


def test_front():
    assert ways._front({"a": (50, 99), "b": (60, 98), "c": (10, 90)}) == ["a", "c"]


@pytest.mark.slow
def test_one_cell():
    found = ways.one("filters pruned, half the MACs", 0, (20, 5), "cpu")
    assert found["macs"] == pytest.approx(0.5, abs=0.015)
    assert 0 < found["bytes"] < 0.7
    assert found["time"] > 0
