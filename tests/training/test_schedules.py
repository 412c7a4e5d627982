import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsmith.training import TrainConfig, schedules


def test_cosine_equals_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 40, eta_min=0.1)
    for t in range(41):
        assert math.isclose(schedules.cosine(t, 40, 0.1), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        theirs.step()


def test_step_equals_torchs():
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    theirs = torch.optim.lr_scheduler.MultiStepLR(optimizer, [20, 30], 0.1)
    for t in range(40):
        assert math.isclose(schedules.step(t, 40), optimizer.param_groups[0]["lr"], rel_tol=1e-9)
        optimizer.step()
        theirs.step()


def test_inverse_is_ganins_annealing():
    """mu_p = mu_0 / (1 + 10 p)^0.75 with p = t / total: gamma = 10 / total."""
    for t in (0, 10, 55, 100):
        assert math.isclose(schedules.inverse(t, 10 / 100, 0.75), 1 / (1 + 10 * t / 100) ** 0.75)


@given(
    st.sampled_from(["cosine", "step", "inverse", "constant"]),
    st.integers(1, 300),
    st.integers(0, 50),
    st.floats(0, 1),
)
def test_factor_never_leaves_the_unit_interval_and_only_falls_after_warm_up(name, total, warmup, final):
    config = TrainConfig(schedule=name, warmup_steps=warmup, final_factor=final)
    values = [schedules.factor(config, t, total) for t in range(total)]
    assert all(0 <= v <= 1 for v in values)
    after = values[warmup:]
    assert all(a >= b for a, b in itertools.pairwise(after))
    assert values[: warmup or 1] == sorted(values[: warmup or 1])


@pytest.mark.parametrize("name", ["cosine", "step", "inverse", "constant"])
def test_warm_up_is_linear_and_ends_at_one(name):
    config = TrainConfig(schedule=name, warmup_steps=4)
    assert [schedules.factor(config, t, 20) for t in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
