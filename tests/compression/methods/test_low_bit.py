"""Quantised weights against the papers' formulas, value and gradient."""

import pytest
import torch
from torch import nn

from convsmith.compression.methods.low_bit import binary_weight, int8_scale, int8_weight, lowbit, ternary_weight
from convsmith.errors import InvalidArgument


def test_binary_is_the_best_scaled_sign():
    v = torch.randn(4, 3, 2, 2, dtype=torch.float64)
    w = binary_weight(v)
    for channel in range(4):
        scale = v[channel].abs().mean()
        assert set(w[channel].unique().tolist()) <= {-scale.item(), scale.item()}
        error = (w[channel] - v[channel]).square().sum()
        for other in (0.9, 1.1):
            assert error < (w[channel] * other - v[channel]).square().sum()


def test_binary_gradient_is_the_papers():
    v = torch.tensor([[0.5, -0.25, 1.5, -3.0]], dtype=torch.float64, requires_grad=True)
    g = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.float64)
    binary_weight(v).backward(g)
    sign = torch.tensor([[1.0, -1.0, 1.0, -1.0]], dtype=torch.float64)
    scale = v.detach().abs().mean()
    inside = (v.detach().abs() <= 1).double()
    # d/dv of a * sign(v): through the sign (straight, clipped) and through a = mean |v|
    expected = scale * inside * g + sign * (g * sign).sum() / 4
    torch.testing.assert_close(v.grad, expected)


def test_ternary_by_its_formula():
    v = torch.randn(3, 10, dtype=torch.float64)
    w = ternary_weight(v)
    for row in range(3):
        threshold = 0.7 * sum(abs(x) for x in v[row].tolist()) / 10
        used = [abs(x) for x in v[row].tolist() if abs(x) > threshold]
        scale = sum(used) / len(used)
        expected = [0.0 if abs(x) <= threshold else scale * (1 if x > 0 else -1) for x in v[row].tolist()]
        torch.testing.assert_close(w[row], torch.tensor(expected, dtype=torch.float64))


def test_int8_error_is_at_most_half_a_step():
    v = torch.randn(5, 7, dtype=torch.float64)
    scale = int8_scale(v)
    assert ((int8_weight(v, scale) - v).abs() <= scale / 2 + 1e-12).all()


@pytest.mark.parametrize("quantise", [ternary_weight, lambda v: int8_weight(v, int8_scale(v))])
def test_straight_through(quantise):
    v = torch.randn(2, 3, requires_grad=True)
    g = torch.randn(2, 3)
    quantise(v).backward(g)
    torch.testing.assert_close(v.grad, g)


@pytest.mark.parametrize("scheme", ["binary", "ternary"])
@pytest.mark.parametrize("shape", [(3, 7), (4, 3, 3, 3), (1, 1)])
def test_quantising_twice_changes_nothing_bit_for_bit(scheme, shape):
    quantise = {"binary": binary_weight, "ternary": ternary_weight}[scheme]
    once = quantise(torch.randn(shape))
    assert torch.equal(quantise(once), once)


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2, padding_mode="circular"),
        nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
        nn.Linear(5, 3),
    ],
    ids=str,
)
def test_layers_compute_with_the_quantised_weight_and_train(layer):
    made = lowbit(layer, "ternary")
    x = torch.randn(2, 5) if isinstance(layer, nn.Linear) else torch.randn(2, 4, 6, 6)
    same = type(layer)
    with torch.no_grad():
        layer.weight.copy_(made.quantised())
    torch.testing.assert_close(made(x), same.forward(layer, x))
    made(x).sum().backward()
    assert made.weight.grad.abs().sum() > 0
    assert "ternary" in repr(made)


def test_unknown_scheme():
    with pytest.raises(InvalidArgument, match="scheme has no such choice"):
        lowbit(nn.Linear(2, 2), "int3")


def test_the_remembered_weight_follows_every_change():
    made = lowbit(nn.Linear(6, 4), "ternary").eval()
    x = torch.randn(2, 6)
    with torch.no_grad():
        first = made(x)
        assert made.quantised() is made.quantised()
        made.weight.mul_(2)
        torch.testing.assert_close(made(x) - made.bias, 2 * (first - made.bias))
        made.load_state_dict({"weight": torch.ones(4, 6), "bias": torch.zeros(4)})
        torch.testing.assert_close(made(x), x.sum(1, keepdim=True).expand(2, 4))


@pytest.mark.parametrize("mode", ["zeros", "reflect", "circular"])
@pytest.mark.parametrize(("padding", "kernel"), [("same", (3, 2)), ("valid", (3, 3)), ((1, 2), (3, 5)), (0, 1)])
def test_padding_is_that_of_the_plain_layer(mode, padding, kernel):
    plain = nn.Conv2d(4, 6, kernel, padding=padding, padding_mode=mode, groups=2)
    layer, x = lowbit(plain, "int8"), torch.randn(2, 4, 9, 8)
    plain.weight.data = layer.quantised().detach()
    torch.testing.assert_close(layer(x), plain(x), rtol=0, atol=0)


def test_a_transposed_layer_takes_an_output_size():
    plain = nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, dilation=2)
    layer, x = lowbit(plain, "int8"), torch.randn(2, 4, 5, 5)
    plain.weight.data = layer.quantised().detach()
    for size in (None, (12, 11), (2, 6, 12, 12)):
        torch.testing.assert_close(layer(x, size), plain(x, size), rtol=0, atol=0)
    with pytest.raises(RuntimeError):
        layer(x, (20, 20))
