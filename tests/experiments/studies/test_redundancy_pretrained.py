"""The rule of redundancy/pretrained on made-up numbers."""

from experiments.studies import redundancy_pretrained as study
from experiments.studies.contract import STUDIES


def test_registered_with_a_rule():
    assert "at most 1 point is lost" in STUDIES.entry("redundancy/pretrained").traits["rule"]


def test_the_rule():
    lost = {arm: 0.5 for arm in study.ARMS if arm != study.ORIGINAL}
    assert study.decide(lost) == "reproduced"
    assert study.decide({**lost, "int8": 1.0}) == "reproduced"
    assert study.decide({**lost, "int8": 1.1}) == "partly"
    assert study.decide({**dict.fromkeys(lost, 2.0), "int8": 0.1}) == "not reproduced"


def test_every_arm_but_int8_is_judged_after_repair():
    assert {arm: study._final(arm) for arm in study.ARMS if arm != "int8"} == dict.fromkeys(
        [arm for arm in study.ARMS if arm != "int8"], study.TUNED
    )
    assert study._final("int8") == study.WITHOUT
