"""The reversal multiplies gradients by -c, and its ramp is a function of the step."""

import math

import pytest
import torch
from torch.testing import assert_close

from convsmith.adaptation.losses.reversal import ramp, reverse_gradient
from convsmith.errors import InvalidArgument


def test_identity_forward_and_minus_c_backward():
    x = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    y = reverse_gradient(x, 0.3)
    assert_close(y, x, rtol=0, atol=0)
    (grad,) = torch.autograd.grad(y.pow(3).sum(), x)
    assert_close(grad, -0.3 * 3 * x.detach() ** 2, rtol=1e-15, atol=0)


def test_a_tensor_scale_broadcasts_and_receives_no_gradient():
    x = torch.randn(4, 3, requires_grad=True)
    scale = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    reverse_gradient(x, scale).sum().backward()
    assert_close(x.grad, -scale.detach().expand(4, 3))
    assert scale.grad is None


def test_second_derivatives_pass_too():
    x = torch.randn(3, dtype=torch.float64, requires_grad=True)
    (first,) = torch.autograd.grad(reverse_gradient(x, 2.0).pow(3).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x)
    assert_close(second, 4.0 * 6 * x.detach())  # reversed twice


def test_ramp_starts_at_zero_and_ends_at_its_upper_bound():
    assert ramp(0, 5000) == 0.0
    assert_close(ramp(5000, 5000), 0.99991, rtol=0, atol=1e-5)
    assert ramp(9999, 5000) == ramp(5000, 5000)
    assert_close(ramp(250, 1000, upper=3.0), 3 * (2 / (1 + math.exp(-2.5)) - 1))
    assert ramp(10, 100, start=10) == 0.0
    assert ramp(60, 100, start=10) == ramp(50, 100)


def test_a_ramp_without_length_is_refused():
    with pytest.raises(InvalidArgument, match="argument: length"):
        ramp(1, 0)


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda: reverse_gradient([1.0], 1.0), "x"),
        (lambda: reverse_gradient(torch.ones(2).long(), 1.0), "x"),
        (lambda: reverse_gradient(torch.ones(2), "1"), "scale"),
        (lambda: reverse_gradient(torch.ones(2), None), "scale"),
    ],
)
def test_wrong_kinds_are_named(call, name):
    with pytest.raises(InvalidArgument, match=f"argument: {name}"):
        call()
