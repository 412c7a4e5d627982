"""No layer closes completely: the gates carry what the image adds to a blank of its mean colour."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from convsmith.errors import InvalidArgument
from convsmith.interpretation import Routes, apply_routes, find_routes, routes_at_sparsity
from convsmith.interpretation.find import blanks
from convsmith.interpretation.gates import GatedNetwork
from convsmith.interpretation.sites import plan_sites
from convsmith.interpretation.solvers.problem import OWN, beside_blank, evaluate


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
    # two images lead by less than their blank does: they speak against the class, and nothing of them can be shown
    label, added = routes.prediction[:, None], []
    for images in (x, blanks(x)):
        z = apply_routes(biased.model, images, {})
        added.append((z.gather(1, label) - z.scatter(1, label, -torch.inf).amax(1, keepdim=True))[:, 0])
    speaks = added[0] > added[1]
    assert (~speaks).sum() == 2
    assert routes.flags.open.all(1).tolist() == speaks.tolist()
    assert routes.kept.all()
    assert (routes.gamma == 0.3).all()
    # what depends on the image again says more about the network's output
    assert routes.divergence[shut & speaks].mean() < published.divergence[shut & speaks].mean() / 2


def test_the_gates_of_an_open_route_say_something_else_about_a_blank(biased):
    """What they add to the blank's answer decides, also where the blank alone is predicted like the image."""
    x = biased.test_x[:20]
    routes = find_routes(biased.model, x, gamma=0.3, open_layers=True)
    own, constant = (apply_routes(biased.model, images, routes) for images in (x, blanks(x)))
    full, blank = (apply_routes(biased.model, images, {}) for images in (x, blanks(x)))
    _, reduced = beside_blank(full.softmax(1), blank)
    alike = blank.argmax(1) == routes.prediction
    mended = (reduced != blank).any(1)
    assert (alike & ~mended).sum() == 2  # their blank leads by more than they do
    assert mended.sum() >= 3
    assert not (mended & ~alike).any()
    assert (reduced.argmax(1) != routes.prediction)[~alike | mended].all()
    assert ((own - constant + reduced).argmax(1) == routes.prediction).all()


def test_one_pass_beside_a_blank_is_the_formula(biased):
    model, x = biased.model.double(), biased.test_x[:6].double()
    plan = plan_sites(model, x)
    gates = torch.rand(6, plan.total, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    with torch.no_grad():
        full, blank = model(x), model(blanks(x))
    p, stiff = full.softmax(1), torch.tensor([0.0, 7.0] * 3).double()
    ahead = torch.tensor([0.1, 0.1, 0.02, 0.02, 0.3, 0.3]).double()
    target, blank = beside_blank(p, blank)
    with GatedNetwork(model, plan, torch.cat([x, blanks(x)])) as network:
        found = evaluate(network, gates, p, blank=blank, target=target, hold=(stiff, ahead))
        ones = evaluate(network, torch.ones_like(gates), p, blank=blank, target=target, hold=(stiff, ahead))
    parts = dict(zip([s.name for s in plan.sites], gates.split(plan.widths, 1), strict=True))
    z, constant = apply_routes(model, x, parts), apply_routes(model, blanks(x), parts)
    first = -(p * z.log_softmax(1)).sum(1)
    second = -(target * (z - constant + blank).log_softmax(1)).sum(1)
    torch.testing.assert_close(found.cross_entropy, OWN * first + (1 - OWN) * second)
    label, lacks = p.argmax(1), torch.zeros(6).double()
    for answer in (z, z - constant + blank):
        for row in range(6):
            others = [float(answer[row, k]) for k in range(10) if k != label[row]]
            lacks[row] += max(0.0, 1 - (float(answer[row, label[row]]) - max(others)) / float(ahead[row])) ** 2
    assert (lacks > 0).any()
    torch.testing.assert_close(found.followed, found.cross_entropy + stiff / 2 * lacks)
    assert ones.kept.all()
    assert ones.gradient.abs().max() < 1e-12
    entropy = [-(q * q.log()).sum(1) for q in (p, target)]
    torch.testing.assert_close(ones.cross_entropy, OWN * entropy[0] + (1 - OWN) * entropy[1])


def test_both_images_of_a_step_count(digits):
    routes = find_routes(digits.model, digits.test_x[:3], open_layers=True, steps=7)
    assert routes.passes.tolist() == [14] * 3
    assert routes.steps.tolist() == [7] * 3


def test_a_prediction_of_biases_is_open_only_where_the_image_adds_to_it(digits):
    """Biases make the prediction almost alone: a route is what the image adds, or there is none and it is flagged."""
    with torch.no_grad():
        digits.model[-1].weight.mul_(1e-3)
    x = digits.test_x[:4]
    routes = find_routes(digits.model, x, open_layers=True)
    logits = [apply_routes(digits.model, images, {}) for images in (x, blanks(x))]
    full, blank = (z.gather(1, z.argsort(1)[:, -2:]).diff(dim=1)[:, 0] for z in logits)
    assert (logits[0].argmax(1) == logits[1].argmax(1)).all()
    assert routes.flags.open.all(1).tolist() == (full > blank).tolist()
    assert ["biases" in " ".join(routes.messages(row)) for row in range(4)] == (full <= blank).tolist()
    assert 0 < int((full > blank).sum()) < 4
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


def test_a_channel_that_only_the_blank_needs_stays_open():
    """It is silent on the image; without it the blank says what the image says less clearly."""
    layers = nn.Conv2d(1, 2, 1), nn.ReLU(), nn.Conv2d(2, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    model = nn.Sequential(*layers, nn.Linear(2, 2)).eval()
    edges, flat = torch.tensor([[1.0], [-1.0]]), torch.tensor([[1.0, 1.0], [-1.0, -1.0]])
    with torch.no_grad():
        for layer, weight, bias in ((0, edges, [-0.5, 0.5]), (2, flat, [0.0, 0.25]), (6, torch.eye(2), [0.0, 0.0])):
            model[layer].weight.copy_(weight.view_as(model[layer].weight))
            model[layer].bias.copy_(torch.tensor(bias))
        model[6].weight.copy_(torch.tensor([[4.0, 0.0], [0.0, 8.0]]))
    x = (torch.arange(16) % 2).float().view(1, 1, 4, 4)  # the last channel is positive at 0.5 only
    routes = find_routes(model, x, open_layers=True)
    own, constant = (apply_routes(model, images, routes) for images in (x, blanks(x)))
    blank = apply_routes(model, blanks(x), {})
    full = apply_routes(model, x, {}).softmax(1)
    target, reduced = beside_blank(full, blank)
    image = own - constant + reduced
    assert image.argmax(1).tolist() == [0]
    itself, added = (-(p * z.log_softmax(1)).sum(1) for p, z in ((full, own), (target, image)))
    expected = OWN * itself + (1 - OWN) * added + 0.05 * routes.vector().sum(1)
    torch.testing.assert_close(routes.objective, expected, atol=1e-5, rtol=1e-5)
