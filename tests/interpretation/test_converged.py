"""The converging search: a bound no gates can beat, and rows that shrink into a steep place and walk instead."""

import pytest
import torch
from torch import nn

from convsmith.interpretation import apply_routes, find_routes
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.sites import plan_sites
from convsmith.interpretation.solvers import converged
from convsmith.interpretation.solvers.problem import (
    OWN,
    ROOM,
    beside_blank,
    evaluate,
    headroom,
    lead,
    least_cross_entropy,
)


def entropy(p):
    return -sum(float(x) * float(x.log()) for x in p if x > 0)


def test_the_bound_is_the_entropy_and_no_gates_are_below_it(digits):
    model, x = digits.model.double(), digits.test_x[:6].double()
    blank = x.mean((1, 2, 3), keepdim=True).expand_as(x)
    plan = plan_sites(model, x)
    with torch.enable_grad(), GatedNetwork(model, plan, torch.cat([x, blank])) as network:
        with torch.no_grad():
            full, silent = network.logits().chunk(2)
        p = full.softmax(1)
        target, constant = beside_blank(p, silent)
        bound = least_cross_entropy(p, target)
        for row in range(6):
            expected = OWN * entropy(p[row]) + (1 - OWN) * entropy(target[row])
            assert float(bound[row]) == pytest.approx(expected, abs=1e-12)
            assert float(least_cross_entropy(p)[row]) == pytest.approx(entropy(p[row]), abs=1e-12)
        open_gates = torch.ones(6, plan.total).double()
        draw = torch.Generator().manual_seed(0)
        for gates in (open_gates, *(3 * torch.rand(20, 6, plan.total, generator=draw, dtype=torch.float64))):
            found = evaluate(network, gates, p, blank=constant, target=target).cross_entropy
            assert (found >= bound - 1e-12).all()


def undecided(digits):
    """A network that hardly tells classes apart, so that the entropy is nearly all of every objective; images."""
    model, x = digits.model.double(), digits.test_x[:5].double()
    with torch.no_grad():
        model[-1].weight.mul_(1e-3)
        model[-1].bias.mul_(1e-3)[4] += 0.1  # class 4 wins, with every gate closed too
    return model, x, least_cross_entropy(model(x).detach().softmax(1))


def test_a_row_that_cannot_get_better_has_converged(digits):
    model, x, least = undecided(digits)
    routes = find_routes(model, x, gamma=0.05)
    assert routes.converged.all()
    assert routes.kept.all()
    assert (routes.objective <= 1.003 * least).all()
    assert (routes.objective - least <= 0.003 * 0.05 * routes.vector().shape[1]).all()


def test_a_light_penalty_is_no_reason_to_stop_at_open_gates(digits):
    model, x, least = undecided(digits)
    routes = find_routes(model, x, gamma=1e-6)
    total = routes.vector().shape[1]
    assert (least + 1e-6 * total <= 1.003 * least).all()
    assert (routes.vector().sum(1) < 0.8 * total).all()


@pytest.mark.parametrize("scale", [1e-2, 1e-3])
def test_a_row_held_by_its_prediction_goes_to_its_edge_and_rests(digits, scale):
    """The network is so unsure that closing gates costs nothing but the prediction: that alone keeps some open."""
    model, x = digits.model.double(), digits.test_x[:6].double()
    with torch.no_grad():
        model[-1].weight.mul_(scale)
        model[-1].bias.mul_(scale)
        full = model(x)
    routes = find_routes(model, x, gamma=0.05)
    label = routes.prediction[:, None]
    share = lead(apply_routes(model, x, routes), label) / lead(full, label)
    assert routes.kept.all()
    assert routes.converged.all()
    assert ((share > 0) & (share < 1)).all()
    assert (routes.vector().sum(1) < 0.15 * routes.vector().shape[1]).all()


def test_the_lead_that_is_kept_is_the_networks_own_or_a_tenth():
    logits = torch.tensor([[0.0, 2.0, 0.5], [0.0, 0.03, 0.01], [0.2, 0.2, 0.0]]).double()
    other = torch.tensor([[0.0, 2.0, 1.96], [0.0, 0.5, 0.0], [0.3, 0.2, 0.0]]).double()
    p, target = logits.softmax(1), other.softmax(1)
    assert headroom(p).tolist() == pytest.approx([ROOM, 0.02, 10 * torch.finfo(p.dtype).eps])
    assert headroom(p, target).tolist() == pytest.approx([0.04, 0.02, 10 * torch.finfo(p.dtype).eps])


def chain(layers=24, width=6):
    """A deep network of positive scale whose first class wins by some 30 logits, and six images of noise."""
    torch.manual_seed(0)
    parts = []
    for number in range(layers):
        layer = nn.Conv2d(width if number else 1, width, 3, padding=1)
        nn.init.kaiming_normal_(layer.weight)
        nn.init.zeros_(layer.bias)
        parts += [layer, nn.ReLU()]
    model = nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 3)).double().eval()
    x = torch.rand(6, 1, 6, 6, generator=torch.Generator().manual_seed(1)).double()
    with torch.no_grad():
        model[-1].bias.zero_()
        lead = model(x).topk(2).values.diff().abs().mean()
        model[-1].weight.mul_(30 / lead)
    return model, x


@pytest.fixture
def steep(monkeypatch):
    """Searches with and without the walk of rows astray, and which rows went astray."""
    model, x = chain()
    asked = []
    part = converged.Rows.part
    monkeypatch.setattr(converged.Rows, "part", lambda rows, which: asked.append(which.clone()) or part(rows, which))
    walked = find_routes(model, x, gamma=0.001)
    monkeypatch.setattr(converged, "STEEP", float("inf"))
    plain = find_routes(model, x, gamma=0.001)
    monkeypatch.undo()
    return model, x, walked, plain, asked[0]


def test_rows_astray_walk_and_the_others_go_on_as_ever(steep):
    _, _, walked, plain, astray = steep
    assert astray.any()
    assert not astray.all()
    assert torch.equal(walked.vector()[~astray], plain.vector()[~astray])
    assert torch.equal(walked.passes[~astray], plain.passes[~astray])
    assert (walked.vector()[astray] != plain.vector()[astray]).any(1).all()
    assert walked.kept.all()


def test_a_row_astray_does_not_notice_the_others(steep):
    model, x, walked, _, astray = steep
    for row in (int(astray.nonzero()[0]), int((~astray).nonzero()[0])):
        alone = find_routes(model, x[row : row + 1], gamma=0.001)
        torch.testing.assert_close(alone.objective[0], walked.objective[row], atol=0, rtol=1e-4)
        assert ((alone.vector()[0] > 0) == (walked.vector()[row] > 0)).double().mean() >= 0.98


def test_a_walk_never_ends_above_what_the_shrinking_found(steep):
    model, x, walked, _, _ = steep
    shrunk = find_routes(model, x, gamma=0.001, steps=converged.LOOK)
    assert (walked.objective <= shrunk.objective).all()


@pytest.mark.parametrize("steps", [1, converged.LOOK, converged.LOOK + 1, converged.LOOK + 2])
def test_few_passes_are_all_that_rows_take(steep, steps):
    model, x = steep[:2]
    routes = find_routes(model, x, gamma=0.001, steps=steps)
    assert routes.passes.tolist() == [steps] * len(x)
    assert routes.kept.all()
