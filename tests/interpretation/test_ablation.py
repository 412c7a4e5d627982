"""Removal and keeping, against loops over single images, and the order every claim depends on."""

import numpy as np
import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation import ablate, apply_routes, find_routes, removal_curve, score_units
from convsmith.training.evaluation import wilson
from tests.interpretation.naive import gated_logits


def test_nothing_removed_is_the_plain_accuracy_and_all_removed_is_the_biases(digits):
    x, y = digits.test_x[:40], digits.test_y[:40]
    routes = find_routes(digits.model, x, steps=20)
    none, everything = ablate(digits.model, x, y, routes, [0.0, 1.0])
    with torch.no_grad():
        plain = (digits.model(x).argmax(1) == y).float().mean().item()
        bare = gated_logits(digits.model, x[:1], [torch.zeros(16), torch.zeros(32), torch.zeros(32)]).argmax(1)
    assert none == pytest.approx(plain)
    assert everything == pytest.approx((y == bare).float().mean().item())


def test_a_removal_is_what_a_loop_over_images_does(digits):
    x, y = digits.test_x[:10], digits.test_y[:10]
    scores = score_units(digits.model, x, "gradient-times-activation")
    curve = removal_curve(digits.model, x, y, scores, [0.1, 0.3])
    for row, count in enumerate((8, 24)):
        for image in range(10):
            order = scores.vector()[image].argsort(descending=True)
            gates = torch.ones(80)
            gates[order[:count]] = 0
            with torch.no_grad():
                logits = gated_logits(digits.model, x[image : image + 1], gates.split([16, 32, 32]))
            assert curve.correct[row, image] == (logits.argmax(1) == y[image])


def test_critical_nodes_hurt_more_than_random_ones_and_least_ones_hurt_nothing(digits):
    x, y = digits.test_x[:200], digits.test_y[:200]
    routes = find_routes(digits.model, x)
    at = [0.02, 0.05]
    critical, random, least = (ablate(digits.model, x, y, routes, at, order=o) for o in ("critical", "random", "least"))
    assert critical[1] < critical[0] < random[0]
    assert critical[1] < random[1] - 0.2
    assert least[1] > random[1] - 0.02
    kept = ablate(digits.model, x, y, routes, [0.2], keep=True)
    assert kept[0] > ablate(digits.model, x, y, routes, [0.2], keep=True, order="random")[0] + 0.2


def test_ranking_by_class_uses_the_class_mean(digits):
    x, y = digits.test_x[:60], digits.test_y[:60]
    routes = find_routes(digits.model, x, steps=40)
    by_class = removal_curve(digits.model, x, y, routes, [0.1], by="class")
    assert by_class.by_class.shape == (1, 10)
    assert torch.isfinite(by_class.by_class).all()
    label = int(y[0])
    mean = routes.vector()[y == label].mean(0)
    gates = torch.ones(80)
    gates[mean.argsort(descending=True)[:8]] = 0
    with torch.no_grad():
        logits = gated_logits(digits.model, x[:1], gates.split([16, 32, 32]))
    assert by_class.correct[0, 0] == (logits.argmax(1) == y[0])


def test_the_interval_is_wilsons():
    low, high = wilson(45, 50)
    assert (low, high) == pytest.approx((0.786398, 0.956519), abs=1e-5)
    assert wilson(0, 0) == (0.0, 1.0)
    assert wilson(50, 50)[1] == pytest.approx(1.0)


def test_gates_may_be_given_for_some_layers_and_for_all_images_alike(digits):
    x = digits.test_x[:3]
    g = torch.rand(32)
    out = apply_routes(digits.model, x, {"2": g})
    with torch.no_grad():
        expected = gated_logits(digits.model, x, [torch.ones(16), g, torch.ones(32)])
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-5)
    assert torch.equal(apply_routes(digits.model, x, {}), digits.model(x))


def test_bad_requests_are_refused(digits):
    x, y = digits.test_x[:4], digits.test_y[:4]
    routes = find_routes(digits.model, x, steps=2)
    for settings, word in (
        ({"order": "critcal"}, "critical"),
        ({"fractions": [1.5]}, "fractions"),
        ({"fractions": []}, "fractions"),
        ({"by": "layer"}, "class"),
    ):
        with pytest.raises(InvalidArgument, match=word):
            removal_curve(digits.model, x, y, routes, **{"fractions": [0.1], **settings})
    assert ablate(digits.model, x, y, routes, np.linspace(0, 1, 2)) == ablate(digits.model, x, y, routes, [0, 1])
    for wrong, word in ((y.tolist(), "as_tensor"), (y.numpy(), "as_tensor"), ("0-3", "labels")):
        with pytest.raises(InvalidArgument, match=word):
            ablate(digits.model, x, wrong, routes, [0.1])
    with pytest.raises(InvalidArgument, match="routes must be Routes"):
        ablate(digits.model, x, y, routes.gates, [0.1])
    with pytest.raises(InvalidArgument, match="labels"):
        ablate(digits.model, x, torch.tensor([-1, 0, 1, 2]), routes, [0.1])
    for wrong in ([1.0] * 32, torch.ones(4, 32, 1)):
        with pytest.raises(InvalidArgument, match="gates"):
            apply_routes(digits.model, x, {"2": wrong})
    with pytest.raises(InvalidArgument, match="one route per image"):
        ablate(digits.model, x[:2], y[:2], routes, [0.1])
    with pytest.raises(InvalidArgument, match="channels"):
        apply_routes(digits.model, x, {"2": torch.ones(5)})
    with pytest.raises(InvalidArgument, match="layer"):
        apply_routes(digits.model, x, {"77": torch.ones(5)})
