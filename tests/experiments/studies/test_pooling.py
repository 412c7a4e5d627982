"""The rules of the pooling studies decide as written, and their one recipe is repeatable and the same for all arms."""

import pytest

from convsmith.errors import InvalidArgument
from experiments.studies import (
    pooling_convergence,
    pooling_cost,
    pooling_fashion,
    pooling_iterations,
    pooling_layers,
    pooling_power,
    pooling_small_data,
)
from experiments.studies.contract import Study
from experiments.studies.lean_training import DIGITS
from experiments.studies.second_order_training import CHANCE, PooledNet, head_size, train
from experiments.studies.statistics import Interval

QUICK = pooling_fashion.QUICK


@pytest.mark.parametrize(
    ("average", "half", "plain", "verdict"),
    [
        ([90, 91], [95, 96.1], [92, 93], "reproduced"),
        ([90, 91], [95, 96.1], [97, 98.2], "partly"),
        ([90, 91], [95, 96.1], [90, 99], "partly"),
        ([90, 99], [95, 96.1], [92, 93], "not reproduced"),
        ([90], [95], [92], "not reproduced"),
    ],
)
def test_the_rule_of_powers(average, half, plain, verdict):
    arms = {"average": average, "exponent 0.5": half, "exponent 1": plain}
    assert pooling_power.decide(arms)[0] == verdict


@pytest.mark.parametrize(
    ("without", "failed", "raw", "verdict"),
    [
        ([CHANCE, CHANCE], 2, [80, 81], "reproduced"),
        ([50, 51], 0, [80, 81], "reproduced"),
        ([92, 93.1], 0, [80, 81], "partly"),
        ([CHANCE, CHANCE], 2, [94, 97], "partly"),
        ([95, 96], 0, [94, 97], "not reproduced"),
    ],
)
def test_the_rule_of_layers(without, failed, raw, verdict):
    arms = {"trace": [95, 96.1], "Frobenius": [95, 96], "no pre-normalisation": without, "no post-compensation": raw}
    assert pooling_layers.decide(arms, failed)[0] == verdict


@pytest.mark.parametrize(
    ("three", "seven", "times", "verdict"),
    [
        ([94.5, 95.6], [95, 96.2], (1.0, 2.0), "reproduced"),
        ([94.5, 95.6], [95, 96.2], (2.0, 1.0), "partly"),
        ([93.0, 94.0], [95, 96.2], (1.0, 2.0), "partly"),
        ([94.5, 95.6], [97, 98.2], (1.0, 2.0), "not reproduced"),
    ],
)
def test_the_rule_of_iterations(three, seven, times, verdict):
    seconds = {3: times[0], 5: times[1], 7: 3.0}
    assert pooling_iterations.decide({3: three, 5: [95, 96.1], 7: seven}, seconds)[0] == verdict


def test_updates_to_average_poolings_final_accuracy():
    average = [[10, 50.0], [20, 80.0], [30, 79.0]]
    curves = {"average": [average], "isqrt-cov": [[[10, 79.0], [20, 70.0], [30, 90.0]]], "late": [[[10, 1.0]] * 3]}
    assert pooling_convergence.reached(curves) == {"average": [20], "isqrt-cov": [10], "late": [40]}
    for fast, verdict in (([10, 11], "reproduced"), ([10, 28], "partly"), ([30, 41], "not reproduced")):
        needed = {"average": [30, 30.5], "isqrt-cov": fast}
        assert pooling_convergence.decide(needed)[0] == verdict


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        ((3, 1, 5), (0.2, -1, 1.4), "reproduced"),
        ((3, 1, 5), (-0.2, -1, 0.6), "partly"),
        ((3, -1, 7), (1, 0.5, 1.5), "partly"),
        ((3, -1, 7), (1, -0.5, 2.5), "not reproduced"),
    ],
)
def test_the_rule_of_small_data(small, large, verdict):
    assert pooling_small_data.decide({50: Interval(*small, 3), 1000: Interval(*large, 3)}) == verdict


def test_the_rule_of_cost_and_one_measurement():
    slower, faster = ([5.0, 5.1], [1.0, 1.2]), ([1.0, 1.2], [5.0, 5.1])
    assert pooling_cost.decide({"a": slower, "b": slower})[0] == "reproduced"
    assert pooling_cost.decide({"a": slower, "b": faster})[0] == "partly"
    assert pooling_cost.decide({"b": faster})[0] == "not reproduced"
    found = pooling_cost.measure("isqrt-cov", (16, 3, 2), 0, "cpu")
    assert found["forward"] > 0
    assert found["backward"] > 0
    assert found["saved"] > 0


def test_the_recipe_is_repeatable_and_a_run_that_diverges_is_a_result():
    one, two = (train("isqrt-cov", 0, 2, "cpu", images_used=64, evaluate_every=1) for _ in range(2))
    assert one["curve"] == two["curve"]
    assert [row[0] for row in one["curve"]] == [1, 2]
    assert one["accuracy"] == two["accuracy"]
    failed = train("isqrt-cov", 0, 30, "cpu", options={"normalization": None, "compensate": False})
    assert failed["accuracy"] == CHANCE
    assert "finite" in failed["failed"]
    with pytest.raises(InvalidArgument):
        PooledNet("isqrt-cow")


def test_fashion_runs_whole_and_its_equal_head_has_as_many_parameters(monkeypatch):
    for name, value in (("RECIPE", DIGITS), ("UPDATES", 10), ("ARMS", {a: pooling_fashion.ARMS[a] for a in QUICK})):
        monkeypatch.setattr(pooling_fashion, name, value)
    outcome = pooling_fashion.fashion(Study("pooling/fashion", quick=False, seeds=[0], device="cpu"))
    assert [row[0] for row in outcome.tables[0].rows] == list(QUICK)
    ours, equal = (
        head_size(PooledNet(pooling, **options))
        for pooling, options in (pooling_fashion.ARMS[arm] for arm in (pooling_fashion.OURS, pooling_fashion.EQUAL))
    )
    assert abs(equal - ours) < 0.01 * ours
