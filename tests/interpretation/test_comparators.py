"""Comparators against formulas written out for a Sequential, one image at a time."""

import pytest
import torch
from torch import nn

from convsmith.errors import InvalidArgument
from convsmith.interpretation import SCORES, find_routes, score_units
from tests.interpretation.naive import gated_logits


def naive_slopes(model, x, gates, target):
    gates = [g.clone().requires_grad_(True) for g in gates]
    return torch.cat(torch.autograd.grad(gated_logits(model, x, gates)[0, target], gates))


@pytest.mark.parametrize("method", sorted(SCORES.names()))
def test_every_score_has_the_shape_of_routes(digits, method):
    x = digits.test_x[:5]
    scores, routes = score_units(digits.model, x, method, batch_size=2), find_routes(digits.model, x, steps=1)
    assert {n: g.shape for n, g in scores.gates.items()} == {n: g.shape for n, g in routes.gates.items()}
    assert (scores.vector() >= 0).all()
    assert torch.equal(scores.prediction, routes.prediction)
    again = score_units(digits.model, x, method, batch_size=2)
    assert torch.equal(again.vector(), scores.vector())
    assert scores.passes.tolist() == [10 * 3 if method == "integrated" else 1] * 5  # ten steps of each of three layers
    with torch.inference_mode():
        target = scores.prediction.clone()
    assert torch.equal(score_units(digits.model, x, method, batch_size=2, target=target).vector(), scores.vector())


def test_activation_is_the_mean_of_the_rectified_map(digits):
    x = digits.test_x[:3]
    scores = score_units(digits.model, x, "activation")
    with torch.no_grad():
        torch.testing.assert_close(scores.gates["2"], digits.model[:4](x).mean((2, 3)), atol=1e-6, rtol=1e-5)


def test_gradient_times_activation_and_integration_follow_their_formulas(digits):
    model, x = digits.model.double(), digits.test_x[:3].double()
    contribution = score_units(model, x, "gradient-times-activation")
    integrated = score_units(model, x, "integrated", steps=4)
    widths = [16, 32, 32]
    for row in range(3):
        target = int(contribution.prediction[row])
        ones = [torch.ones(w, dtype=torch.float64) for w in widths]
        expected = naive_slopes(model, x[row : row + 1], ones, target).abs()
        torch.testing.assert_close(contribution.vector()[row], expected, atol=1e-14, rtol=1e-12)
        parts = []
        for layer, width in enumerate(widths):
            total = torch.zeros(width, dtype=torch.float64)
            for k in range(4):
                gates = list(ones)
                gates[layer] = torch.full((width,), (k + 0.5) / 4, dtype=torch.float64)
                total += naive_slopes(model, x[row : row + 1], gates, target).split(widths)[layer]
            parts.append((total / 4).abs())
        torch.testing.assert_close(integrated.vector()[row], torch.cat(parts), atol=1e-14, rtol=1e-12)


def test_integrated_scores_of_a_layer_sum_to_the_change_of_the_logit():
    """Completeness: the integral of the slope along the diagonal is logit(1) - logit(0)."""
    model = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).eval()
    with torch.no_grad():
        model[4].weight.abs_()  # all contributions have one sign, so absolute values lose nothing
    x = torch.rand(4, 1, 6, 6)
    scores = score_units(model, x, "integrated", steps=20, target=torch.zeros(4, dtype=torch.long))
    with torch.no_grad():
        change = model(x)[:, 0] - model[4].bias[0]
    torch.testing.assert_close(scores.vector().sum(1), change, atol=1e-5, rtol=1e-4)


def test_the_effective_path_is_the_fewest_nodes_for_half_of_the_contribution(digits):
    x = digits.test_x[:4]
    path = score_units(digits.model, x, "effective-path")
    full = score_units(digits.model, x, "gradient-times-activation")
    for name, chosen in path.critical().items():
        for row in range(4):
            taken = path.gates[name][row]
            assert torch.all((taken == 0) | torch.isclose(taken, full.gates[name][row], atol=1e-6))
            if chosen[row].any():
                rest = full.gates[name][row][~chosen[row]]
                assert taken[chosen[row]].min() >= 0
                assert len(rest) >= chosen[row].sum() - 1


def test_bad_names_and_targets_are_refused(digits):
    with pytest.raises(InvalidArgument, match="activation"):
        score_units(digits.model, digits.test_x[:2], "activations")
    with pytest.raises(InvalidArgument, match="target"):
        score_units(digits.model, digits.test_x[:2], "random", target=torch.zeros(3))
    with pytest.raises(InvalidArgument, match="step"):
        score_units(digits.model, digits.test_x[:2], "integrated", steps=0)
