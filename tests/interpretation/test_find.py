"""The whole search against a naive one-image loop written from the published description, and its laws."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from convsmith.interpretation import Routes, find, find_routes
from convsmith.interpretation.solvers.rows import SAVING
from tests.interpretation.naive import gated_logits, naive_paper


def fields(routes):
    return [routes.vector(), routes.objective, routes.divergence, routes.confidence]


def test_one_image_equals_the_naive_loop(digits):
    for row in range(10):
        x = digits.test_x[row : row + 1]
        routes = find_routes(digits.model, x, mode="paper", sites="conv")
        expected, objective = naive_paper(digits.model, x)
        torch.testing.assert_close(routes.vector()[0], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(routes.objective[0], objective, atol=1e-5, rtol=1e-5)


def equal_in_float64(model, images, batch_size):
    """The law without float32's rounding, which the published rate amplifies on some images by tens of thousands."""
    model, images = copy.deepcopy(model).double(), images.double()
    gates = find_routes(model, images, mode="paper", sites="conv", batch_size=batch_size).vector()
    for row, found in zip(images, gates, strict=True):
        torch.testing.assert_close(found, naive_paper(model, row[None])[0], atol=1e-10, rtol=0)


@pytest.mark.parametrize("size", [1, 5, 48])
def test_the_batch_equals_the_naive_loop_over_single_images(digits, size):
    """To 1e-5, but for the few images on which the published rate is unstable (which, is rounding's): in float64."""
    x = digits.test_x[:48]
    routes = find_routes(digits.model, x, mode="paper", sites="conv", batch_size=size)
    assert routes.kept.all()
    assert (routes.passes == 30).all()
    naive = torch.stack([naive_paper(digits.model, row[None])[0] for row in x])
    distance = (routes.vector() - naive).abs().amax(1)
    unstable = (distance > 1e-5).nonzero()[:, 0]
    assert len(unstable) <= 8
    if len(unstable):
        equal_in_float64(digits.model, x[unstable], size)


def test_order_and_split_do_not_matter_in_float32_but_for_unstable_images(digits):
    x = digits.test_x[:48]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
    whole = find_routes(digits.model, x, mode="paper", sites="conv").vector()
    for size in (7, 48):
        other = find_routes(digits.model, x[order], mode="paper", sites="conv", batch_size=size).vector()
        stable = (other - whole[order]).abs().amax(1) <= 1e-5
        assert stable.sum() >= 40
        if not stable.all():
            equal_in_float64(digits.model, x[order][~stable], size)


def test_in_float64_the_batch_equals_the_naive_loop_to_rounding(digits):
    model, x = digits.model.double(), digits.test_x[:4].double()
    routes = find_routes(model, x, mode="paper", sites="conv")
    assert routes.vector().dtype == torch.float64
    apart = torch.stack(
        [(found - naive_paper(model, row[None])[0]).abs().max() for found, row in zip(routes.vector(), x, strict=True)]
    )
    assert apart.median() <= 1e-12
    assert apart.max() <= 1e-11  # the published rate amplifies the rounding of the third image a thousandfold


@pytest.mark.parametrize("mode", ["paper", "converged"])
def test_order_and_split_of_the_batch_do_not_matter(digits, mode):
    # float64: the law is exact there up to rounding; float32 noise could flip an accept decision of the converging mode
    model, x = digits.model.double(), digits.test_x[:23].double()
    whole = find_routes(model, x, mode=mode, batch_size=23, steps=40)
    for size in (1, 7):
        for a, b in zip(
            fields(find_routes(model, x, mode=mode, batch_size=size, steps=40)), fields(whole), strict=True
        ):
            torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)
    order = torch.randperm(len(x))
    shuffled = find_routes(model, x[order], mode=mode, batch_size=23, steps=40)
    for a, b in zip(fields(shuffled), fields(whole[order]), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("mode", ["paper", "converged"])
def test_nothing_is_left_over_from_an_earlier_call(digits, mode):
    """The published detector reused one optimiser for two images; the second then started with stale momentum."""
    x = digits.test_x[:16]
    first = find_routes(digits.model, x, mode=mode)
    second = find_routes(digits.model, x, mode=mode)
    find_routes(digits.model, digits.test_x[50:60], mode=mode)
    third = find_routes(digits.model, x, mode=mode)
    assert torch.equal(first.vector(), second.vector())
    assert torch.equal(first.vector(), third.vector())


def test_gates_stay_in_their_range_and_the_prediction_is_kept(digits):
    for mode in ("paper", "converged"):
        routes = find_routes(digits.model, digits.test_x[:64], mode=mode, upper=1.5)
        assert (routes.vector() >= 0).all()
        assert (routes.vector() <= 1.5).all()
        assert routes.kept.all()
        assert (routes.divergence >= 0).all()


def test_kept_and_divergence_are_those_of_the_gated_network(digits):
    x = digits.test_x[:8]
    routes = find_routes(digits.model, x, sites="conv")
    for row in range(len(x)):
        gates = [g[row] for g in routes.gates.values()]
        p = digits.model(x[row : row + 1]).log_softmax(1)
        q = gated_logits(digits.model, x[row : row + 1], gates).log_softmax(1)
        assert q.argmax() == routes.prediction[row]
        torch.testing.assert_close(routes.divergence[row], (p.exp() * (p - q)).sum(), atol=1e-5, rtol=1e-4)


def agree_to_conditioning(a, b):
    """A hundred quasi-Newton steps multiply rounding of float64 by up to 1e12 where the problem is nearly flat.

    Such rows end at two points of one valley, apart by at most what a row at rest may still lack; most end at one.
    """
    torch.testing.assert_close(a.objective, b.objective, atol=0, rtol=SAVING)
    assert ((a.objective / b.objective - 1).abs() <= 1e-6).double().mean() > 0.9
    assert (((a.vector() > 0) == (b.vector() > 0)).double().mean(1) >= 0.98).all()
    assert ((a.vector() - b.vector()).abs().amax(1) <= 1e-6).double().mean() > 0.7


def planted():
    """Three layers of eight channels; only channels 2 and 5 of every layer reach the logits."""
    torch.manual_seed(3)
    keep = torch.tensor([2, 5])
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 2),
    ).eval()
    with torch.no_grad():
        model[0].weight[2], model[0].weight[5] = 0.5, 0.4
        model[0].bias.fill_(0.1)
        mask = torch.zeros(8)
        mask[keep] = 1
        model[2].weight.abs_().mul_(mask[None, :, None, None]).add_(0.05 * mask[None, :, None, None])
        model[2].bias.zero_()
        model[6].weight.copy_(torch.stack([mask, -mask]) * 0.4)
        model[6].bias.copy_(torch.tensor([-2.0, 2.0]))  # the logits turn without the channels
    return model, keep


@pytest.mark.parametrize("mode", ["paper", "converged"])
def test_exactly_the_planted_channels_are_found(mode):
    model, keep = planted()
    x = torch.rand(10, 1, 6, 6) + 1.0
    steps = 300 if mode == "paper" else None
    routes = find_routes(model, x, mode=mode, steps=steps, gamma=0.02, sites="conv")
    assert (routes.prediction == 0).all()
    truth = torch.zeros(8, dtype=torch.bool)
    truth[keep] = True
    for name, critical in routes.critical(1e-3).items():
        assert not critical[:, ~truth].any(), name
        assert critical[:, truth].any(1).all(), name
    last = routes.gates["2"]
    # at the minimum one of the two is enough for the last layer
    least = last[:, truth].amin(1) if mode == "paper" else last[:, truth].amax(1)
    assert (least > last[:, ~truth].amax(1)).all()


def test_a_silent_channel_closes_and_a_dead_first_layer_follows_the_closed_form(digits):
    model = digits.model
    with torch.no_grad():
        model[0].weight[3].zero_()
        model[0].bias[3] = -1.0  # never positive before the ReLU: no gradient but that of the penalty
    x = digits.test_x[:6]
    for steps, value in ((21, 0.3953), (29, 0.0264), (30, 0.0)):
        gates = find_routes(model, x, mode="paper", steps=steps, sites="conv").gates["0"][:, 3]
        n = steps - 1
        closed_form = max(1 - 0.05 * (n - 9 * (1 - 0.9**n)), 0.0)
        assert closed_form == pytest.approx(value, abs=1e-4)
        torch.testing.assert_close(gates, torch.full_like(gates, closed_form), atol=1e-5, rtol=0)
    converged = find_routes(model, x, sites="conv")
    assert (converged.gates["0"][:, 3] == 0).all()


def test_more_steps_never_raise_the_best_objective(digits, monkeypatch):
    """Of the search itself: closing silent gates afterwards may help an unfinished point more than a finished one."""
    monkeypatch.setattr(find, "close_silent", lambda network, solution, weight: solution)
    for mode in ("paper", "converged"):
        values = [find_routes(digits.model, digits.test_x[:16], mode=mode, steps=s).objective for s in (5, 20, 60)]
        assert (values[1] <= values[0] + 1e-5).all()
        assert (values[2] <= values[1] + 1e-5).all()
        assert values[2].mean() < 0.6 * values[0].mean()


def test_without_a_penalty_gates_stay_at_one(digits):
    routes = find_routes(digits.model, digits.test_x[:8], gamma=0.0, mode="paper")
    torch.testing.assert_close(routes.vector(), torch.ones_like(routes.vector()), atol=1e-3, rtol=0)


def test_a_heavier_penalty_never_raises_the_sum_of_gates_on_a_linear_network():
    """Exchange argument: for exact minimisers the value of the sum is nonincreasing in gamma."""
    model = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)).eval()
    x = torch.rand(8, 3, 4, 4) * 3
    sums = [find_routes(model, x, gamma=g, sites="conv", steps=400).vector().sum(1) for g in (1e-4, 1e-3, 1e-2)]
    assert (sums[1] <= sums[0] + 1e-2).all()
    assert (sums[2] <= sums[1] + 1e-2).all()
    assert sums[2].mean() < sums[0].mean() - 0.05


def test_permuting_channels_permutes_the_gates(digits):
    model, x = digits.model.double(), digits.test_x[:8].double()
    before = find_routes(model, x, sites="conv")
    order = torch.randperm(model[2].out_channels)
    with torch.no_grad():
        model[2].weight.copy_(model[2].weight[order])
        model[2].bias.copy_(model[2].bias[order])
        model[5].weight.copy_(model[5].weight[:, order])
    after = find_routes(model, x, sites="conv")
    agree_to_conditioning(replace(after, gates={**after.gates, "2": after.gates["2"][:, order.argsort()]}), before)


def test_rescaling_a_channel_between_two_layers_leaves_its_gate(digits):
    model, x = digits.model.double(), digits.test_x[:8].double()
    before = find_routes(model, x, sites="conv")
    with torch.no_grad():
        model[2].weight[4] *= 8
        model[2].bias[4] *= 8
        model[5].weight[:, 4] /= 8
    torch.testing.assert_close(find_routes(model, x, sites="conv").vector(), before.vector(), atol=1e-7, rtol=0)


@pytest.mark.slow
def test_randomised_parameters_change_the_routes(digits):
    """Cascading randomisation, from the top: the correlation with the trained network's routes falls."""
    x = digits.test_x[:48]
    trained = find_routes(digits.model, x).vector()
    correlations = []
    for part in (9, 5, 2):
        digits.model[part].reset_parameters()
        other = find_routes(digits.model, x).vector()
        pairs = [torch.corrcoef(torch.stack([a, b]))[0, 1] for a, b in zip(trained, other, strict=True)]
        correlations.append(torch.stack(pairs).nan_to_num().mean().item())
    assert correlations[0] < 0.8
    assert correlations[-1] < 0.4
    assert correlations[-1] < correlations[0]


def test_the_converging_mode_reaches_a_lower_objective_than_the_published_schedule(digits):
    x = digits.test_x[:48]
    paper, converged = find_routes(digits.model, x, mode="paper"), find_routes(digits.model, x)
    assert converged.objective.mean() < 0.85 * paper.objective.mean()
    assert converged.sparsity().mean() < 0.5 * paper.sparsity().mean()
    assert converged.converged.any()


def test_the_mean_penalty_is_the_sum_penalty_divided_by_the_number_of_gates(digits):
    x = digits.test_x[:4]
    by_sum = find_routes(digits.model, x, gamma=0.05)
    by_mean = find_routes(digits.model, x, gamma=0.05 * by_sum.total, gamma_per="mean")
    torch.testing.assert_close(by_sum.vector(), by_mean.vector(), atol=1e-5, rtol=0)


def test_a_uniform_start_has_one_stream_per_image_whatever_the_batch(digits):
    model, x = digits.model.double(), digits.test_x[:10].double()
    # few passes: over a hundred the rounding of another batch's products can grow a millionfold on a flat row
    a = find_routes(model, x, init="uniform", seed=4, batch_size=10, steps=10)
    b = find_routes(model, x, init="uniform", seed=4, batch_size=3, steps=10)
    torch.testing.assert_close(a.vector(), b.vector(), atol=1e-6, rtol=0)
    c = find_routes(model, x, init="uniform", seed=5, steps=10)
    assert not torch.equal(a.vector(), c.vector())


@pytest.mark.slow
def test_finished_rows_leave_and_the_rest_is_unchanged(digits):
    """Easy images stop early; the slow ones must not notice that the batch shrinks."""
    model, x = digits.model.double(), digits.test_x[:24].double()
    together = find_routes(model, x, batch_size=24, steps=200)
    assert together.passes.unique().numel() > 1
    alone = find_routes(model, x, batch_size=1, steps=200)
    agree_to_conditioning(together, alone)
    assert ((together.passes - alone.passes).abs() <= 1).double().mean() > 0.9


def test_half_precision_keeps_exact_zeros(digits):
    x = digits.test_x[:64]
    full, half = find_routes(digits.model, x), find_routes(digits.model, x, precision="bf16")
    assert half.vector().dtype == torch.float32
    assert (half.vector() == 0).any()
    agree = ((full.vector() > 0) == (half.vector() > 0)).float().mean()
    assert agree > 0.95


def test_labels_and_index_travel(digits):
    routes = find_routes(digits.model, digits.test_x[:3], labels=digits.test_y[:3], index=torch.tensor([7, 8, 9]))
    assert torch.equal(routes.labels, digits.test_y[:3])
    assert routes.index.tolist() == [7, 8, 9]
    assert isinstance(routes[1:], Routes)
