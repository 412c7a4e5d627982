"""Heat maps against plain autograd, their laws, and what a map must lose when the weights are drawn anew."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convsmith.errors import InvalidArgument
from convsmith.interpretation import find_routes, heat_map, overlay, score_units
from convsmith.interpretation.heat import blurred
from tests.interpretation.naive import gated_logits


def test_the_pathway_gradient_is_the_input_gradient_on_the_route(digits):
    x = digits.test_x[:4]
    routes = find_routes(digits.model, x, steps=40)
    maps = heat_map(digits.model, x, routes, method="pathway-gradient", batch_size=3)
    assert maps.shape == (4, 8, 8)
    for row in range(4):
        point = x[row : row + 1].clone().requires_grad_(True)
        gates = [(g[row] > 0).float() for g in routes.gates.values()]
        gated_logits(digits.model, point, gates)[0, routes.prediction[row]].backward()
        torch.testing.assert_close(maps[row], point.grad.abs().amax(1)[0], atol=1e-5, rtol=1e-4)
    digits.model.zero_grad()
    other = heat_map(digits.model, x, routes, method="pathway-gradient", target=routes.runner_up)
    assert not torch.equal(other, maps)


def out_of_place(model):
    model = copy.deepcopy(model)
    for module in model:
        if isinstance(module, nn.ReLU):
            module.inplace = False
    return model


def places(model, point, gates, label, stage):
    """Sum over channels of gate x activation x slope of the class logit at one module's output, [h, w]."""
    seen = {}
    hook = model[stage].register_forward_hook(lambda _m, _x, y: seen.update(y=y))
    try:
        logit = model(point)[0, label]
        (slope,) = torch.autograd.grad(logit, seen["y"])
    finally:
        hook.remove()
    return (gates[:, None, None] * (seen["y"] * slope)[0]).sum(0).detach()


@pytest.mark.parametrize("method", ["class-activation", "route-activation"])
def test_an_activation_map_is_that_of_a_loop(digits, method):
    x = digits.test_x[:3]
    model, routes = out_of_place(digits.model), find_routes(digits.model, x, steps=40)
    one, two = (heat_map(digits.model, x, routes, method=method, sizes=n, batch_size=2) for n in (1, 2))
    for row in range(3):
        made = []
        for stage, layer in ((5, "5"), (2, "2")):
            gates = routes.gates[layer][row]
            weights = gates if method == "route-activation" else torch.ones_like(gates)
            signed = places(model, x[row : row + 1], weights, routes.prediction[row], stage)
            big = F.interpolate(signed.relu()[None, None], size=(8, 8), mode="bilinear", align_corners=False)[0, 0]
            made.append(big / big.max())
        torch.testing.assert_close(one[row], made[0], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(two[row], (made[0] * made[1]).sqrt(), atol=1e-5, rtol=1e-4)


def test_places_add_up_to_the_scores_of_the_route(digits):
    x, model = digits.test_x[:3], out_of_place(digits.model)
    scores = score_units(digits.model, x)
    for row in range(3):
        point, label = x[row : row + 1], scores.prediction[row]
        slopes = torch.stack([places(model, point, one, label, 5).sum() for one in torch.eye(32)])
        torch.testing.assert_close(slopes.abs(), scores.gates["5"][row], atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(slopes.sum(), places(model, point, torch.ones(32), label, 5).sum())


def test_a_map_is_a_share_and_turns_with_the_gates(digits):
    x = digits.test_x[:6]
    routes = find_routes(digits.model, x, steps=40)
    maps, routed = (heat_map(digits.model, x, routes, method=m) for m in ("class-activation", "route-activation"))
    assert not torch.allclose(maps, routed)
    for made in (maps, routed):
        assert (made >= 0).all()
        assert (made <= 1 + 1e-6).all()
    double = type(routes)(**{**vars(routes), "gates": {n: 2 * g for n, g in routes.gates.items()}})
    torch.testing.assert_close(heat_map(digits.model, x, double, method="route-activation"), routed)
    closed = type(routes)(**{**vars(routes), "gates": {n: 0 * g for n, g in routes.gates.items()}})
    assert torch.equal(heat_map(digits.model, x, closed), maps)
    for method in ("route-activation", "pathway-gradient"):
        assert (heat_map(digits.model, x, closed, method=method) == 0).all()


@pytest.mark.parametrize("method", ["class-activation", "route-activation"])
def test_weights_drawn_anew_destroy_the_map(digits, method):
    x = digits.test_x[:40]
    torch.manual_seed(1)
    other = copy.deepcopy(digits.model)
    for module in other.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    mine, theirs = (
        heat_map(model, x, find_routes(model, x, steps=60), method=method) for model in (digits.model, other)
    )
    pairs = zip(mine.flatten(1), theirs.flatten(1), strict=True)
    alike = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in pairs]).nan_to_num()
    own = heat_map(digits.model, x, find_routes(digits.model, x, steps=60, gamma=0.02), method=method)
    same = torch.stack(
        [torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(mine.flatten(1), own.flatten(1), strict=True)]
    )
    assert alike.mean() < 0.3 < 0.6 < same.nan_to_num().mean()


def test_a_blur_keeps_the_sum_inside_and_a_constant_everywhere():
    point = torch.zeros(1, 41, 41)
    point[0, 20, 20] = 1
    soft = blurred(point, 0.05)
    torch.testing.assert_close(soft.sum(), torch.tensor(1.0))
    assert soft[0, 20, 20] < 0.1
    assert torch.equal(soft.flatten().argmax(), torch.tensor(20 * 41 + 20))
    torch.testing.assert_close(blurred(torch.full((2, 9, 5), 3.0), 0.3), torch.full((2, 9, 5), 3.0))
    assert torch.equal(blurred(point, 0.0), point)


def test_an_overlay_warms_the_hottest_place_only():
    pixels = torch.full((2, 1, 40, 60), 0.5)
    heat = torch.zeros(2, 10, 15)
    heat[0, 2, 3] = 1
    shown = overlay(pixels, heat)
    assert shown.shape == (2, 3, 40, 60)
    assert shown.min() >= 0
    assert shown.max() <= 1
    red = shown[0, 0] - shown[0, 2]
    assert red[10, 14] > 0.4
    assert red[35, 50] == 0
    torch.testing.assert_close(shown[1], torch.full((3, 40, 60), 0.5))


def test_bad_requests_are_refused(digits):
    x = digits.test_x[:2]
    routes = find_routes(digits.model, x, steps=2)
    for wrong in ({"method": "class-activatoin"}, {"sizes": 0}, {"smooth": -1}, {"smooth": True}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            heat_map(digits.model, x, routes, **wrong)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    tokens = find_routes(flat, x, sites="activation", steps=2)
    with pytest.raises(InvalidArgument, match="pathway-gradient"):
        heat_map(flat, x, tokens)
    assert heat_map(flat, x, tokens, method="pathway-gradient").shape == (2, 8, 8)


@pytest.mark.parametrize("method", ["class-activation", "route-activation", "pathway-gradient"])
def test_inference_mode_of_the_caller_does_not_matter(digits, method):
    x = digits.test_x[:3]
    expected = heat_map(digits.model, x, find_routes(digits.model, x, steps=5), method=method)
    with torch.inference_mode():
        routes = find_routes(digits.model, x, steps=5)
        assert torch.equal(heat_map(digits.model, x, routes, method=method), expected)
    assert torch.equal(heat_map(digits.model, x, routes, method=method), expected)


@pytest.mark.parametrize("sizes", [1, 2])
def test_a_second_head_that_the_logits_do_not_read_is_left_out(digits, sizes):
    class TwoHeads(nn.Module):
        def __init__(self):
            super().__init__()
            self.trunk, self.rest = digits.model[:4], digits.model[4:]
            self.aside = nn.Conv2d(32, 3, 8)

        def forward(self, x):
            features = self.trunk(x)
            return {"logits": self.rest(features), "aside": self.aside(features.clone())}

    x, model = digits.test_x[:3], TwoHeads().eval()
    maps = heat_map(model, x, find_routes(model, x, steps=5), sizes=sizes)
    assert maps.shape == (3, 8, 8)
    if sizes == 2:
        one = heat_map(digits.model, x, find_routes(digits.model, x, steps=5), sizes=1)
        torch.testing.assert_close(maps, one, atol=1e-5, rtol=1e-4)
