import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.pooling import covariance, matrix_power, power_covariance

D = torch.float64


def features(m, c=6, b=2):
    """Features whose covariance has well separated non-zero eigenvalues."""
    u, _ = torch.linalg.qr(torch.randn(b, c, min(c, m), dtype=D))
    v, _ = torch.linalg.qr(torch.randn(b, m, min(c, m), dtype=D))
    return (u * torch.linspace(1.0, 2.0, min(c, m), dtype=D)) @ v.mT + 0.1


@pytest.mark.parametrize("exponent", [0.25, 0.5, 0.75, 1.0, 1.5])
@pytest.mark.parametrize("m", [2, 3, 5, 6, 7, 18])
@pytest.mark.parametrize("center", [True, False])
def test_both_sides_agree_in_output_and_gradient(exponent, m, center):
    x = features(m).requires_grad_()
    g = torch.randn(2, 6, 6, dtype=D)
    outs, grads = [], []
    for side in ("channels", "positions"):
        out = power_covariance(x, exponent=exponent, center=center, side=side)
        outs.append(out)
        grads.append(torch.autograd.grad(out, x, g)[0])
    assert_close(outs[0], outs[1], rtol=0, atol=1e-12)
    assert_close(grads[0], grads[1], rtol=0, atol=1e-12)
    assert_close(outs[0], matrix_power(covariance(x, center=center), exponent), rtol=0, atol=1e-12)


def difference(a, b):
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def both_sides(x, g, exponent, center=True):
    found = []
    for side in ("channels", "positions"):
        leaf = x.clone().requires_grad_()
        out = power_covariance(leaf, exponent=exponent, center=center, side=side)
        found += [out.detach(), torch.autograd.grad(out, leaf, g)[0]]
    return difference(found[2], found[0]), difference(found[3], found[1])


@pytest.mark.parametrize("exponent", [0.25, 0.5, 0.75, 1.0, 1.5])
@pytest.mark.parametrize("d", [2, 3, 6, 7, 12, 24])
def test_sides_agree_on_random_features_from_two_positions_to_three_times_the_channels(exponent, d):
    for m in sorted({2, 3, *range(max(2, d - 1), d + 3), 2 * d, 3 * d}):
        for kind in ("normal", "relu", "equal channels", "equal positions"):
            x = torch.randn(1, d, m, dtype=D)
            if kind == "relu":
                x = x.relu()
            elif kind == "equal channels":
                x[:, d - d // 2 :] = x[:, : d // 2].clone()
            elif kind == "equal positions":
                x[:, :, m - m // 2 :] = x[:, :, : m // 2].clone()
            output, gradient = both_sides(x, torch.randn(1, d, d, dtype=D), exponent)
            assert output < 1e-12, (m, kind)
            assert gradient < 1e-12, (m, kind)


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.5])
@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6])
def test_nearly_singular_features_lose_what_their_condition_costs_and_not_its_square(exponent, condition):
    """A relative change eps of X moves a singular value s by eps s_1, its share in output and gradient by eps s_1/s."""
    for d, m in ((6, 7), (6, 5), (12, 12), (12, 36), (24, 10)):
        s = min(d, m - 1)
        u = torch.linalg.qr(torch.randn(1, d, s, dtype=D))[0]
        v = torch.randn(1, m, s, dtype=D)
        v = torch.linalg.qr(v - v.mean(1, keepdim=True))[0]
        x = (u * torch.logspace(0, -math.log10(condition), s, dtype=D)) @ v.mT
        output, gradient = both_sides(x, torch.randn(1, d, d, dtype=D), exponent)
        bound = 16 * torch.finfo(D).eps * condition
        assert output < bound
        assert gradient < bound


@pytest.mark.parametrize("exponent", [0.5, 0.75])
@pytest.mark.parametrize(("m", "side"), [(4, "positions"), (12, "channels")])
def test_gradients(exponent, m, side):
    x = features(m, c=5 if side == "channels" else 6, b=1).requires_grad_()

    def f(x):
        return power_covariance(x, exponent=exponent, side=side)

    assert gradcheck(f, x)
    assert gradgradcheck(f, x)


def test_the_root_is_twice_differentiable_on_a_rank_deficient_covariance():
    """Through Lyapunov equations: the eigenvector route divides by the gap of two zeros."""
    x = torch.randn(1, 6, 3, dtype=D, requires_grad=True)
    out = power_covariance(x, side="channels")
    (first,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    assert second.isfinite().all()
    # |Sigma^(1/2)|^2 = tr Sigma, so the gradient is 2 / M times the centred features
    centred = x - x.mean(2, keepdim=True)
    assert_close(first, 2 * centred / 3, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("exponent", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("side", ["channels", "positions", "auto"])
def test_degenerate_maps(exponent, side):
    for x in (torch.zeros(2, 5, 9), torch.full((2, 5, 9), 0.3), torch.randn(2, 5, 1)):
        x.requires_grad_()
        out = power_covariance(x, exponent=exponent, side=side)
        out.sum().backward()
        assert out.abs().max() == 0
        assert x.grad.isfinite().all()


@pytest.mark.parametrize("exponent", [0, -0.5])
def test_bad_exponents(exponent):
    with pytest.raises(InvalidArgument, match="exponent must be a finite number above 0"):
        power_covariance(torch.randn(1, 3, 4), exponent=exponent)
