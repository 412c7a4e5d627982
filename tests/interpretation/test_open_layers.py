"""No layer closes completely: the largest gamma at which a route still depends on the image."""

import copy
from dataclasses import replace

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation import Routes, RouteSettings, find_routes, routes_at_sparsity
from convsmith.interpretation.find import solve
from convsmith.interpretation.sites import plan_sites
from convsmith.interpretation.solvers.open_layers import RATIO, open_layers


@pytest.fixture
def biased(digits):
    """A network whose biases alone predict class 1 of 10 by a little: the penalty likes to close it."""
    model = copy.deepcopy(digits.model)
    with torch.no_grad():
        model[-1].bias[1] += 4
    return replace(digits, model=model)


def test_open_routes_exist_where_the_published_problem_closes_a_layer(biased):
    biased.model.double()
    x = biased.test_x[:20].double()
    published = find_routes(biased.model, x, gamma=0.3)
    shut = published.flags.closed.any(1)
    assert 0 < shut.sum() < 20
    routes = find_routes(biased.model, x, gamma=0.3, open_layers=True)
    assert not routes.flags.closed.any()
    assert routes.kept.all()
    assert (routes.gamma[shut] < 0.3).all()
    # images whose layers were open anyway are untouched
    torch.testing.assert_close(routes.vector()[~shut], published.vector()[~shut], atol=1e-6, rtol=0)
    assert (routes.gamma[~shut] == published.gamma[~shut]).all()
    # what depends on the image again says more about the network's output
    assert routes.divergence[shut].mean() < published.divergence[shut].mean()


def test_the_gamma_found_is_open_and_a_little_more_closes_a_layer(biased):
    x = biased.test_x[:40]
    routes = find_routes(biased.model, x, gamma=0.3, open_layers=True)
    lowered = (routes.gamma < 0.3).nonzero()[:, 0]
    assert len(lowered)
    plan = plan_sites(biased.model, x)
    same = solve(biased.model, x[lowered], plan, RouteSettings(), gammas=routes.gamma[lowered])
    assert not same.flags.closed.any()
    more = solve(biased.model, x[lowered], plan, RouteSettings(), gammas=routes.gamma[lowered] * RATIO**2)
    # the set of open gammas need not be an interval, as the problem is not convex: within one ratio of the bracket
    # (measured) a quarter of these rows close, at two nearly all
    assert (more.flags.closed.any(1) | ~more.converged).double().mean() > 0.6


def test_the_bracket_closes_on_the_critical_gamma_of_each_row():
    """A stand-in for the solver that closes above a known weight: bisection must end just below it."""
    critical, late = torch.tensor([1.0, 0.02, 3e-4, 0.0]), -1.0

    def found(rows, gammas):
        shut = gammas > critical[rows]
        count = len(rows)
        zero = torch.zeros(count)
        from convsmith.interpretation import RouteFlags

        return Routes(
            gates={"a": (~shut)[:, None].float()},
            prediction=rows,
            confidence=zero,
            runner_up=rows,
            kept=~shut,
            divergence=zero,
            objective=zero,
            passes=rows,
            converged=gammas != late,
            gamma=gammas.float(),
            flags=RouteFlags(shut[:, None], (~shut)[:, None].float(), zero, ("a",)),
            index=rows,
            labels=rows,
        )

    start = found(torch.arange(4), torch.full((4,), 0.05))
    routes = open_layers(found, start)
    assert routes.index.tolist() == [0, 1, 2, 3]
    assert routes.gamma[0] == start.gamma[0]
    for row in (1, 2):
        assert critical[row] / RATIO <= routes.gamma[row] <= critical[row]
    assert routes.gamma[3] == start.gamma[3]  # nothing opens it: returned as it came, flagged
    assert routes.flags.closed[:, 0].tolist() == [False, False, False, True]
    floored = open_layers(found, start, least=1e-3)  # the third needs less than that
    assert floored.flags.closed[:, 0].tolist() == [False, False, True, True]
    assert floored.gamma[2] == start.gamma[2]
    assert critical[1] / RATIO <= floored.gamma[1] <= critical[1]
    late = 0.05 / 4  # a search at this weight runs out of passes: open perhaps for want of time, so not accepted
    hurried = open_layers(found, start)
    assert hurried.converged.all()
    assert critical[1] / RATIO <= hurried.gamma[1] <= critical[1]
    assert hurried.gamma[1] != late


def test_nothing_is_called_open_for_want_of_passes(digits):
    """A prediction that biases make almost alone has no route at a weight above rounding: flagged."""
    with torch.no_grad():
        digits.model[-1].weight.mul_(1e-3)
    routes = find_routes(digits.model, digits.test_x[:4], open_layers=True)
    assert routes.flags.closed.any(1).all()
    assert (routes.divergence < 1e-3).all()
    torch.testing.assert_close(routes.gamma, torch.full((4,), 0.05))


@pytest.mark.slow
def test_rows_do_not_notice_each_other(biased):
    model, x = biased.model.double(), biased.test_x[:12].double()
    together = find_routes(model, x, gamma=0.3, open_layers=True, steps=50)
    alone = find_routes(model, x, gamma=0.3, open_layers=True, steps=50, batch_size=5)
    torch.testing.assert_close(together.vector(), alone.vector(), atol=1e-6, rtol=0)
    torch.testing.assert_close(together.gamma, alone.gamma, atol=0, rtol=1e-12)
    uniform = [
        find_routes(model, x, gamma=0.3, open_layers=True, steps=50, init="uniform", seed=2, batch_size=size).vector()
        for size in (12, 5)
    ]
    torch.testing.assert_close(*uniform, atol=1e-6, rtol=0)


def test_a_layer_without_a_living_channel_stays_closed_and_flagged(digits):
    model = digits.model
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.fill_(-1.0)
    routes = find_routes(model, digits.test_x[:3], open_layers=True, steps=10)
    assert routes.flags.closed[:, 1].all()
    assert routes.gamma.tolist() == pytest.approx([0.05] * 3)
    assert "biases" in " ".join(routes.messages(0))


def test_gamma_travels_through_files_and_frames(biased, tmp_path):
    routes = find_routes(biased.model, biased.test_x[:12], gamma=0.3, open_layers=True, steps=30)
    back = Routes.load(routes.save(tmp_path / "r.safetensors"))
    assert torch.equal(back.gamma, routes.gamma)
    assert back.settings["open_layers"] is True
    assert routes.to_frame()["gamma"].tolist() == pytest.approx(routes.gamma.tolist())
    found, gamma = routes_at_sparsity(biased.model, biased.test_x[:4], 0.1, rounds=3, steps=20, open_layers=True)
    assert torch.equal(found.gamma, gamma)


def test_the_published_schedule_has_no_such_option(digits):
    with pytest.raises(InvalidArgument, match="open"):
        find_routes(digits.model, digits.test_x[:2], mode="paper", open_layers=True)
