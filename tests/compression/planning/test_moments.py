"""Moments: sampled patches are the layer's, the best weights are least squares, the reduced rank is the best."""

import pytest
import torch
from torch import nn

from convsmith.compression.planning.moments import (
    Moments,
    by_group,
    chosen_positions,
    reduced_rank,
    sampled_inputs,
    sampled_outputs,
)

LAYERS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (3, 2), stride=2, padding="valid"),
    nn.Conv2d(4, 8, 4, padding="same", groups=2, padding_mode="reflect"),
    nn.Conv2d(4, 4, 3, dilation=2, groups=4, bias=False),
    nn.Linear(5, 7),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_sampled_patch_makes_the_sampled_output(layer):
    torch.manual_seed(0)
    x = torch.randn(3, 9, 5) if isinstance(layer, nn.Linear) else torch.randn(3, 4, 9, 8)
    with torch.no_grad():
        y = layer(x)
    positions = chosen_positions(layer, tuple(y.shape), 5, seed=1)
    inputs = sampled_inputs(layer, x, positions, y.shape[-1]).double()
    made = torch.einsum("ngd,god->ngo", inputs, by_group(layer)).flatten(1)
    if layer.bias is not None:
        made = made + layer.bias.detach()
    torch.testing.assert_close(made, sampled_outputs(layer, y, positions).double(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("centred", [False, True])
def test_the_best_weights_are_least_squares(centred):
    torch.manual_seed(0)
    x, y = torch.randn(400, 1, 6) + 1, torch.randn(400, 1, 3)
    moments = Moments.of(x, y, centred=centred)
    found = moments.best(torch.zeros(1, 3, 6, dtype=torch.float64), ridge=0.0)[0]
    a, b = x[:, 0].double(), y[:, 0].double()
    if centred:
        a, b = torch.cat([a, torch.ones(400, 1)], 1), b
    wanted = torch.linalg.lstsq(a, b).solution.T
    torch.testing.assert_close(found, wanted[:, :6], atol=1e-5, rtol=1e-5)
    if centred:
        torch.testing.assert_close(moments.bias(found[None]), wanted[:, 6], atol=1e-5, rtol=1e-5)


def test_too_few_samples_leave_the_weights():
    moments = Moments.of(torch.randn(20, 1, 6), torch.randn(20, 1, 3), centred=False)
    weight = torch.randn(1, 3, 6, dtype=torch.float64)
    assert torch.equal(moments.best(weight), weight)


@pytest.mark.parametrize(("outputs", "inputs"), [(4, 9), (9, 4)])
def test_the_reduced_rank_is_the_best_of_its_rank(outputs, inputs):
    torch.manual_seed(0)
    mixing = torch.randn(inputs, inputs)
    x = torch.randn(500, 1, inputs) @ mixing
    weight = torch.randn(1, outputs, inputs, dtype=torch.float64)
    moments = Moments.of(x, torch.randn(500, 1, outputs), centred=False)
    first, second = reduced_rank(weight, moments, 2)

    def error(candidate):
        gap = (weight - candidate)[0]
        return float((gap @ moments.inputs[0] * gap).sum())

    values, vectors = torch.linalg.eigh(moments.inputs[0])
    shaped = weight[0] @ vectors * values.sqrt()
    left = torch.linalg.svdvals(shaped)[2:].square().sum()
    assert error(second @ first) == pytest.approx(float(left), rel=1e-3)


def test_inputs_of_one_direction_have_a_reduced_rank():
    torch.manual_seed(0)
    x = 100 * torch.randn(1200, 1, 1) * torch.randn(1, 1, 300) + 1e-3 * torch.randn(1200, 1, 300)
    weight = torch.randn(1, 40, 300, dtype=torch.float64)
    moments = Moments.of(x, torch.randn(1200, 1, 40), centred=False)
    first, second = reduced_rank(weight, moments, 1)
    gap = weight[0] - (second @ first)[0]
    shaped = weight[0] @ moments.inputs[0]
    assert float((gap @ moments.inputs[0] * gap).sum()) < 1e-6 * float((shaped * weight[0]).sum())
