"""The weights' problem is solved exactly: against a general solver, its optimality conditions, and its extremes."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from torch.testing import assert_close

from convsmith.adaptation.methods.reweighting import critic_gap, train_critic, worst_weights
from convsmith.errors import InvalidArgument


def general_solver(c, rho):
    n = len(c)
    found = minimize(
        lambda w: float(w @ c),
        np.ones(n),
        jac=lambda _: c,
        method="SLSQP",
        bounds=[(0, None)] * n,
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - n},
            {"type": "ineq", "fun": lambda w: rho * n - ((w - 1) ** 2).sum()},
        ],
        options={"maxiter": 500, "ftol": 1e-12},
    )
    return found.x


@given(n=st.integers(2, 12), rho=st.floats(0.05, 20.0), seed=st.integers(0, 999))
def test_it_is_feasible_and_as_good_as_a_general_solver(n, rho, seed):
    c = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    w = worst_weights(c, rho)
    assert float(w.min()) >= 0
    assert_close(w.sum(), w.new_tensor(float(n)))
    assert float((w - 1).square().sum()) <= rho * n * (1 + 1e-6) + 1e-9
    other = general_solver(c.numpy(), rho)
    assert float(w @ c) <= float(other @ c.numpy()) + 1e-5


def test_optimality_conditions_at_ten_thousand_images():
    c = torch.randn(10_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    w = worst_weights(c, 5.0)
    assert_close((w - 1).square().sum(), w.new_tensor(5.0 * 10_000), rtol=1e-6, atol=0)
    active = w > 1e-9
    # on the active set w is affine in c with a negative slope; elsewhere the line is below zero
    slope, level = np.polyfit(c[active].numpy(), w[active].numpy(), 1)
    assert slope < 0
    assert_close(w[active], slope * c[active] + level, rtol=0, atol=1e-8)
    assert float((slope * c[~active] + level).max()) <= 1e-8


def test_extremes():
    c = torch.tensor([3.0, 1.0, 2.0, 1.0])
    assert_close(worst_weights(c, 0.0), torch.ones(4))
    assert_close(worst_weights(c, 100.0), torch.tensor([0.0, 2.0, 0.0, 2.0]))
    assert_close(worst_weights(torch.full((5,), 0.3), 2.0), torch.ones(5))
    two = worst_weights(torch.tensor([0.0, 1.0]), 0.25)
    assert_close(two, torch.tensor([1.5, 0.5]))


def test_shift_and_scale_of_the_values_do_not_matter():
    c = torch.randn(50, dtype=torch.float64)
    assert_close(worst_weights(c, 3.0), worst_weights(7 * c - 100, 3.0), rtol=0, atol=1e-6)
    assert_close(worst_weights(c, 3.0), worst_weights(1e-20 * c, 3.0), rtol=0, atol=1e-6)


@pytest.mark.parametrize("smoothness", ["penalty", "spectral"])
def test_no_critic_is_much_steeper_than_one(smoothness):
    g = torch.Generator().manual_seed(0)
    source, target = torch.randn(100, 4, generator=g), torch.randn(100, 4, generator=g) + 2.0
    critic = train_critic(source, target, smoothness=smoothness, steps=300, hidden=16, seed=3)
    x = torch.cat([source, target]).requires_grad_()
    (slope,) = torch.autograd.grad(critic(x).sum(), x)
    assert 0.3 < float(slope.norm(dim=1).mean()) < 1.3
    assert float(slope.norm(dim=1).max()) < (1.01 if smoothness == "spectral" else 2.0)


def test_the_critic_finds_the_gap_and_ignores_the_global_generator():
    g = torch.Generator().manual_seed(0)
    source, target = torch.randn(200, 4, generator=g), torch.randn(200, 4, generator=g) + 1.0
    before = torch.get_rng_state()
    critic = train_critic(source, target, torch.ones(200), steps=300, hidden=32, seed=1)
    assert torch.equal(before, torch.get_rng_state())
    # the Wasserstein distance of the two clouds is |shift| = 2
    assert 1.0 < abs(critic_gap(critic, source, target, torch.ones(200))) < 2.5
    again = train_critic(source, target, torch.ones(200), steps=300, hidden=32, seed=1)
    assert_close(critic(source), again(source), rtol=0, atol=0)


def test_weights_move_to_the_source_images_that_look_like_the_target():
    g = torch.Generator().manual_seed(0)
    near, far = torch.randn(100, 3, generator=g), torch.randn(100, 3, generator=g) + 4
    source, target = torch.cat([near, far]), torch.randn(150, 3, generator=g)
    critic = train_critic(source, target, torch.ones(200), steps=200, hidden=32, seed=1)
    w = worst_weights(critic(source)[:, 0], 5.0)
    assert float(w[:100].mean()) > 10 * float(w[100:].mean())


def test_bad_input_is_one_clear_error():
    for values, rho, name in (
        (torch.zeros(0), 1.0, "values"),
        (torch.zeros(2, 2), 1.0, "values"),
        ([0.0, 1.0], 1.0, "values"),
        (torch.zeros(3), -1.0, "rho"),
        (torch.zeros(3), math.nan, "rho"),
    ):
        with pytest.raises(InvalidArgument, match=f"argument: {name}"):
            worst_weights(values, rho)
