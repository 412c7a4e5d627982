"""Neighbours and contrasts against plain autograd and plain loops."""

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation import find_routes, nearest_routes, runner_up_contrast
from tests.interpretation.naive import gated_logits


@pytest.mark.parametrize("measure", ["cosine", "jaccard"])
def test_neighbours_are_those_of_a_loop(digits, measure):
    pool = find_routes(digits.model, digits.train_x[:60], steps=30)
    asked = find_routes(digits.model, digits.test_x[:5], steps=30)
    place, value = nearest_routes(asked, pool, 3, measure=measure)
    for row in range(5):
        a = asked.vector()[row]
        if measure == "cosine":
            alike = torch.stack([torch.cosine_similarity(a, b, dim=0) for b in pool.vector()])
        else:
            alike = torch.stack([((a > 0) & (b > 0)).sum() / ((a > 0) | (b > 0)).sum() for b in pool.vector()])
        torch.testing.assert_close(value[row], alike.sort(descending=True).values[:3], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(alike[place[row]], value[row], atol=1e-5, rtol=1e-5)
    own, _ = nearest_routes(pool, pool, 1)
    assert (own[:, 0] != torch.arange(60)).all()


def test_neighbours_mostly_share_the_class(digits):
    pool = find_routes(digits.model, digits.train_x[:300], steps=40)
    asked = find_routes(digits.model, digits.test_x[:60], steps=40)
    place, _ = nearest_routes(asked, pool, 1)
    assert (pool.prediction[place[:, 0]] == asked.prediction).float().mean() > 0.7


def test_the_contrast_is_the_derivative_of_the_margin(digits):
    x = digits.test_x[:3]
    routes = find_routes(digits.model, x, steps=40)
    found = runner_up_contrast(digits.model, x, routes, 4)
    widths = {"0": 0, "2": 1, "5": 2}
    for row in range(3):
        gates = [torch.ones(w, requires_grad=True) for w in (16, 32, 32)]
        logits = gated_logits(digits.model, x[row : row + 1], gates)[0]
        margin = logits[routes.prediction[row]] - logits[routes.runner_up[row]]
        torch.testing.assert_close(found.margin[row], margin.detach(), atol=1e-5, rtol=1e-5)
        slopes = torch.autograd.grad(margin, gates)
        for n in range(4):
            layer, channel = found.layer[row][n], int(found.channel[row, n])
            torch.testing.assert_close(found.effect[row, n], slopes[widths[layer]][channel], atol=1e-5, rtol=1e-4)
            if found.effect[row, n] != 0:
                assert routes.gates[layer][row, channel] > 0
        size = found.effect[row].abs()
        assert (size[:-1] >= size[1:]).all()


def test_bad_requests_are_refused(digits):
    a = find_routes(digits.model, digits.test_x[:3], steps=2)
    b = find_routes(digits.model, digits.test_x[:3], steps=3)
    with pytest.raises(InvalidArgument, match="settings"):
        nearest_routes(a, b, 1)
    with pytest.raises(InvalidArgument, match="reference"):
        nearest_routes(a, a, 3)
    with pytest.raises(InvalidArgument, match="one route per image"):
        runner_up_contrast(digits.model, digits.test_x[:3], a[0])
    with pytest.raises(InvalidArgument, match="cosine"):
        nearest_routes(a, a, 1, measure="l1")


def test_versions_of_the_same_image_are_no_neighbours_of_each_other(digits):
    x = digits.test_x[:4].repeat(2, 1, 1, 1)
    routes = find_routes(digits.model, x, steps=5, index=torch.arange(4).repeat(2))
    place, _ = nearest_routes(routes, routes, 1)
    assert (place[:, 0] % 4 != torch.arange(8) % 4).all()


def test_a_contrast_takes_routes_found_in_inference_mode(digits):
    x = digits.test_x[:3]
    expected = runner_up_contrast(digits.model, x, find_routes(digits.model, x, steps=5), 3)
    with torch.inference_mode():
        routes = find_routes(digits.model, x, steps=5)
        assert torch.equal(runner_up_contrast(digits.model, x, routes, 3).effect, expected.effect)
    assert torch.equal(runner_up_contrast(digits.model, x, routes, 3).effect, expected.effect)
