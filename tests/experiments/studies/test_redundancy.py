"""Rules decide as written, arms meet their budgets, and the two algebraic studies run whole."""

import pytest
import torch

from convsmith.compression import cost
from experiments.studies import redundancy_family, redundancy_fashion, redundancy_members, redundancy_published
from experiments.studies.contract import Study
from experiments.studies.lean_training import INPUT, nearest, train
from experiments.studies.redundancy_arithmetic import arithmetic
from experiments.studies.redundancy_dense_kernel import dense_kernel


def test_arithmetic_and_density_hold_and_are_shown():
    for name, work in (("redundancy/arithmetic", arithmetic), ("redundancy/dense-kernel", dense_kernel)):
        outcome = work(Study(name, quick=True, seeds=[0], device="cpu"))
        assert outcome.verdict == "reproduced", outcome.summary
        assert outcome.tables
    assert "<svg" in outcome.figures[0].svg


@pytest.mark.parametrize(
    ("accuracy", "verdict"),
    [
        ({"M=1": [90, 91], "M=2": [95, 96], "dense": [90, 91.1]}, "reproduced"),
        ({"M=1": [90, 99], "M=2": [95, 96], "dense": [90, 91.1]}, "partly"),
        ({"M=1": [90, 91], "M=2": [95, 96], "M=4": [97, 98.1], "dense": [90, 91.1]}, "partly"),
        ({"M=1": [97, 98.1], "M=2": [95, 96], "dense": [90, 91.1]}, "not reproduced"),
        ({"M=1": [90, 91], "M=2": [95, 96], "dense": [96, 97.1]}, "not reproduced"),
        ({"M=1": [90], "M=2": [95], "dense": [90]}, "not reproduced"),
    ],
)
def test_the_rule_of_members(accuracy, verdict):
    assert redundancy_members.decide(accuracy)[0] == verdict


def test_the_rule_of_the_family():
    def numbers(better):
        found = {}
        for kind in ("params", "macs"):
            found[kind, "regular"] = [90.0, 91.0, 90.5]
            for arm in redundancy_family.INTERLEAVED:
                gain = 3 if (kind, arm) in better else 0
                found[kind, arm] = [90.1 + gain, 90.9 + gain, 90.5 + gain]
        return found

    every = [(kind, arm) for kind in ("params", "macs") for arm in redundancy_family.INTERLEAVED]
    assert redundancy_family.decide(numbers(every[:5]))[0] == "reproduced"
    assert redundancy_family.decide(numbers(every[:4]))[0] == "partly"
    assert redundancy_family.decide(numbers(every[:2]))[0] == "partly"
    assert redundancy_family.decide(numbers(every[:1]))[0] == "not reproduced"
    quick = {key: value for key, value in numbers(every).items() if key[0] == "params"}
    assert redundancy_family.decide(quick)[0] == "reproduced"


@pytest.mark.parametrize("kind", ["params", "macs"])
@pytest.mark.parametrize("arm", redundancy_family.ARMS)
def test_arms_meet_their_budget(arm, kind):
    budget = redundancy_family.BUDGETS[kind]
    counted = cost(redundancy_family.build(arm, budget), INPUT)
    assert getattr(counted, kind) == pytest.approx(budget.amount, rel=0.15)


@pytest.mark.parametrize("name", redundancy_fashion.BUDGETS)
def test_folded_arms_meet_their_budget(name):
    budget, recipe = redundancy_fashion.BUDGETS[name], redundancy_fashion.RECIPE
    fold = budget.fold or redundancy_fashion.FOLD
    for arm in budget.arms:
        counted = cost(redundancy_family.build(arm, budget, recipe, fold), recipe.shape)
        assert getattr(counted, budget.kind) == pytest.approx(budget.amount, rel=0.2), arm


@pytest.mark.parametrize(
    ("name", "params"),
    [("linear", 7_850), ("perceptron 100", 79_510), ("perceptron 256-128-64", 242_762), ("two convolutions", 83_466)],
)
def test_a_published_control_is_the_network_that_was_published(name, params):
    """The last one's parameters are those that its author printed."""
    model = redundancy_published.CONTROLS[name].build()
    assert sum(p.numel() for p in model.parameters()) == params
    assert model(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


@pytest.mark.parametrize(
    ("small", "large", "verdict"),
    [
        ([92, 93.1], [91.0], "reproduced"),
        ([92, 93.1], [90.4], "partly"),
        ([90.1, 90.9], [95.0], "not reproduced"),
        ([92], [95.0], "not reproduced"),
    ],
)
def test_the_rule_of_fashion(small, large, verdict):
    accuracy = {}
    for name, values, regular in (
        (redundancy_fashion.SMALL, small, [90, 91]),
        (redundancy_fashion.HUGE, large, [90.5]),
    ):
        accuracy[name, "regular"] = regular[: len(values)]
        accuracy |= {(name, arm): values for arm in redundancy_family.INTERLEAVED}
    assert redundancy_fashion.decide(accuracy)[0] == verdict


def test_members_meet_the_budget():
    assert redundancy_members.same_budget()


def test_nearest_is_the_nearest():
    def make(width):
        return torch.nn.Linear(width, 10, bias=False)

    assert nearest(make, 1234) == 123
    assert nearest(make, 1234, step=4) == 124


def test_training_is_repeatable():
    cells = [train(lambda: redundancy_family.network("IGCV1", 8), 0, 3, "cpu") for _ in range(2)]
    assert cells[0]["accuracy"] == cells[1]["accuracy"]
    assert cells[0]["params"] == cells[1]["params"]
