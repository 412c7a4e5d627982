"""The rule of redundancy/repair on made-up numbers, and one cell for real."""

import pytest

from experiments.studies import redundancy_repair as study
from experiments.studies.contract import STUDIES


def test_registered_with_a_rule():
    rule = STUDIES.entry("redundancy/repair").traits["rule"]
    assert "more than 1 point" in rule
    assert "at most 0.5" in rule
    assert "seeds 0 to 2" in rule


def test_the_rule():
    every = dict.fromkeys(study.ARMS, 0.5)
    assert study.decide(every) == "reproduced"
    assert study.decide({**every, "binary": 30.0, "ternary": 9.0}) == "reproduced"
    assert study.decide({**every, "low rank": 1.0}) == "reproduced"
    assert study.decide({**every, "low rank": 1.1}) == "not reproduced"
    assert study.decide({**every, "channels pruned": 1.1}) == "partly"
    assert study.decide({**every, "channels pruned": 1.1, "filters pruned": 1.1}) == "not reproduced"
    assert study.decide({**every, "int8": 0.6}) == "not reproduced"
    assert study.decide(dict.fromkeys(study.QUICK, 0.1)) == "reproduced"


@pytest.mark.slow
def test_one_cell():
    found = study.one("filters pruned", 3, (1, 1), "cpu")
    assert 0.485 <= found["macs"] <= 0.5
    assert 0 < found["before"] <= 100
    assert 0 < found["accuracy"] <= 100
    data, again = study.control(3, 1, "cpu")
    assert len(data.test) == 359
    assert again is study.control(3, 1, "cpu")[1]
