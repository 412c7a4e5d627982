"""Minimax roots from features: both sides against each other and against sixty digits.

What float64 can promise is one rounding times what the rest of the steps does to it. With h the composed odd polynomial
on the singular values s of the normalised features, a rounding of step k's result is multiplied by the slope of the
steps that follow, in the gradient by their second derivative; in the null space the gradient has the slope h'(0).
`allowance` computes these. Three steps and seven, the true root, keep 1e-12; in between, where the polynomial still
oscillates, the gradient cannot, whatever the order of operations (the test of five steps).
"""

import mpmath
import numpy as np
import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from convsmith.pooling import ISQRTCOV, covariance, matrix_sqrt
from convsmith.pooling.isqrt import covariance_root
from convsmith.pooling.remez import polar_express_steps

D = torch.float64
EPS = torch.finfo(D).eps


def allowance(n):
    """Bounds of output and gradient for the worst step at the worst singular value, not below 1e-12."""
    s = torch.cat([torch.linspace(0, 1, 200_001, dtype=D), torch.logspace(-6, 0, 50_001, dtype=D)])
    values, slopes, bends, before = [s], [], [], [torch.ones_like(s)]
    for step in polar_express_steps(n):
        a, b, c = step.coefficients
        y = values[-1]
        values.append(a * y + b * y**3 + c * y**5)
        slopes.append(a + 3 * b * y**2 + 5 * c * y**4)
        bends.append(6 * b * y + 20 * c * y**3)
        before.append(before[-1] * slopes[-1])
    output, gradient = 0.0, float(before[n][0])
    slope, bend = torch.ones_like(s), torch.zeros_like(s)
    for k in range(n, -1, -1):
        # slope and bend of the steps after the k-th, at the k-th value
        output = max(output, float((s * slope * values[k]).abs().max()))
        moved = (s * values[k] * bend * before[k]).abs() + (values[k] * slope).abs() + (s * slope * before[k]).abs()
        gradient = max(gradient, float(moved.max()))
        if k:
            slope, bend = slope * slopes[k - 1], bend * slopes[k - 1] ** 2 + slope * bends[k - 1]
    # a step rounds four times: two products, a square, a sum
    return max(1e-12, 4 * EPS * output), max(1e-12, 4 * EPS * gradient)


def inputs(d, m):
    yield "normal", torch.randn(1, d, m, dtype=D)
    yield "relu", torch.randn(1, d, m, dtype=D).relu()
    x = torch.randn(1, d, m, dtype=D)
    x[:, d - d // 2 :] = x[:, : d // 2].clone()
    yield "equal channels", x
    x = torch.randn(1, d, m, dtype=D)
    x[:, :, m - m // 2 :] = x[:, :, : m // 2].clone()
    yield "equal positions", x


def difference(a, b):
    return float((a - b).norm() / b.norm().clamp(min=1e-300))


def run(x, g, steps, side):
    leaf = x.clone().requires_grad_()
    out = covariance_root(leaf, steps, side=side)
    return out.detach(), torch.autograd.grad(out, leaf, g)[0]


@pytest.mark.parametrize("d", [1, 2, 3, 6, 7, 12, 24])
@pytest.mark.parametrize("n", [3, 5, 6, 7, 10])
def test_sides_agree_from_two_positions_to_three_times_the_channels(d, n):
    steps = polar_express_steps(n)
    outputs, gradients = (1e-12, 1e-12) if n in (3, 7) else allowance(n)
    for m in sorted({2, 3, *range(max(2, d - 1), d + 3), 2 * d, 3 * d} - {1}):
        for kind, x in inputs(d, m):
            g = torch.randn(1, d, d, dtype=D)
            channels, positions = (run(x, g, steps, side) for side in ("channels", "positions"))
            assert difference(positions[0], channels[0]) < outputs, (m, kind)
            assert difference(positions[1], channels[1]) < gradients, (m, kind)


def many_digits(x):
    return np.array([[mpmath.mpf(float(v)) for v in row] for row in x], dtype=object)


def exact(x, g, steps):
    """Output and gradient of one sample in mpmath by the definition: P <- P u(P)^2, Y <- Y u(P), and derivatives."""
    d, m = x.shape
    centred = x - x.sum(1, keepdims=True) / m
    size = mpmath.sqrt((centred * centred).sum())
    unit = centred / size
    eye = many_digits(torch.eye(d))
    p, dp = unit.dot(unit.T), (g + g.T) / 2
    y, dy = p, dp
    for step in steps:
        a, b, c = (mpmath.mpf(v) for v in step.coefficients)
        u, du = a * eye + b * p + c * p.dot(p), b * dp + c * (dp.dot(p) + p.dot(dp))
        w, dw = u.dot(u), u.dot(du) + du.dot(u)
        y, dy = y.dot(u), dy.dot(u) + y.dot(du)
        p, dp = p.dot(w), dp.dot(w) + p.dot(dw)
    at_unit = 2 * dy.dot(unit)
    gradient = (at_unit + ((g * y).sum() - (at_unit * unit).sum()) * unit) / mpmath.sqrt(m)
    return y * size / mpmath.sqrt(m), gradient


def apart(a, b):
    return float(mpmath.sqrt(((a - b) ** 2).sum()) / mpmath.sqrt((b * b).sum()))


@pytest.mark.parametrize("n", [3, 4, 7, 10])
@pytest.mark.parametrize(("d", "m", "kind"), [(2, 6, "normal"), (6, 7, "equal channels"), (4, 2, "normal")])
def test_each_side_against_sixty_digits(n, d, m, kind):
    steps = polar_express_steps(n)
    x, g = dict(inputs(d, m))[kind], torch.randn(1, d, d, dtype=D)
    with mpmath.workdps(60):
        output, gradient = exact(many_digits(x[0]), many_digits(g[0]), steps)
        for side in ("channels", "positions"):
            ours = run(x, g, steps, side)
            assert apart(many_digits(ours[0][0]), output) < 1e-12
            assert apart(many_digits(ours[1][0]), gradient) < (1e-12 if n in (3, 7) else allowance(n)[1])


def test_where_the_allowance_is_large_and_where_not():
    assert allowance(3)[0] == 1e-12
    assert allowance(7)[0] == 1e-12
    assert allowance(7)[1] < 4e-12
    assert 1e-10 < allowance(5)[1] < 2e-9


def test_five_steps_cannot_have_a_gradient_to_1e_12_everywhere():
    """The exact gradient of the five-step polynomial moves by more than that when the features move by one rounding."""
    steps = polar_express_steps(5)
    s = torch.linspace(0.5, 0.99, 400_001, dtype=D)
    y, slope, bend = s, torch.ones_like(s), torch.zeros_like(s)
    for step in steps:
        a, b, c = step.coefficients
        first, second = a + 3 * b * y**2 + 5 * c * y**4, 6 * b * y + 20 * c * y**3
        y, slope, bend = a * y + b * y**3 + c * y**5, first * slope, second * slope**2 + first * bend
    worst = float(s[(2 * slope + s * bend).abs().argmax()])
    with mpmath.workdps(60):
        first, second = mpmath.mpf(worst), mpmath.sqrt(1 - mpmath.mpf(worst) ** 2)
        root2 = mpmath.sqrt(2)
        # centred rows with the wanted singular values, and the first row a relative 2^-52 longer
        x = np.array([[first / root2, -first / root2, 0, 0], [0, 0, second / root2, -second / root2]], dtype=object)
        moved = x.copy()
        moved[0] = x[0] * (1 + mpmath.mpf(2) ** -52)
        g = many_digits(torch.tensor([[1.0, 0.0], [0.0, 0.0]]))
        change = apart(exact(moved, g, steps)[1], exact(x, g, steps)[1])
    assert 1e-12 < change < allowance(5)[1]


@pytest.mark.parametrize("n", [1, 3, 7])
@pytest.mark.parametrize(("d", "m"), [(4, 3), (3, 6)])
@pytest.mark.parametrize("side", ["channels", "positions"])
def test_gradcheck_and_gradgradcheck(n, d, m, side):
    x = torch.randn(2, d, m, dtype=D, requires_grad=True)

    def f(x):
        return covariance_root(x, polar_express_steps(n), side=side)

    if n < 7:
        assert gradcheck(f, x)
        assert gradgradcheck(f, x)
    else:
        # 3,400 is the slope at zero: differences in the null space need a smaller stride
        assert gradcheck(f, x, eps=1e-8, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("side", ["channels", "positions"])
def test_equal_to_the_root_of_the_matrix_and_to_the_exact_one(side):
    x = torch.randn(3, 5, 40, dtype=D)
    ours = covariance_root(x, polar_express_steps(7), side=side)
    assert_close(ours, matrix_sqrt(covariance(x), method="polar-express", iterations=7), rtol=0, atol=1e-11)
    assert_close(ours, matrix_sqrt(covariance(x), method="eigh"), rtol=0, atol=1e-7)


def test_vmap_and_compiled_equal_eager():
    x = torch.randn(2, 3, 4, 6, dtype=D)
    steps = polar_express_steps(3)

    def f(x):
        return covariance_root(x, steps)

    assert_close(torch.func.vmap(f)(x), torch.stack([f(v) for v in x]), rtol=1e-12, atol=1e-13)
    per_sample = torch.func.vmap(torch.func.grad(lambda v: f(v[None]).square().sum()))(x[0])
    results = []
    for function in (f, torch.compile(f, fullgraph=True, backend="aot_eager")):
        leaf = x[0].clone().requires_grad_()
        function(leaf).square().sum().backward()
        results.append(leaf.grad)
    assert_close(results[0], results[1], rtol=1e-10, atol=1e-11)
    assert_close(per_sample, results[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("side", ["channels", "positions"])
def test_dead_samples_and_scale(side):
    layer = ISQRTCOV(5, dim=None, iterations=7, method="polar-express", side=side)
    x = torch.randn(3, 5, 3, 3)
    x[1] = 0.7
    x.requires_grad_()
    out = layer(x)
    out.sum().backward()
    assert out[1].abs().max() == 0
    assert x.grad[1].abs().max() == 0
    assert x.grad.isfinite().all()
    assert_close(layer(x * 1e3), out * 1e3, rtol=1e-4, atol=1e-2)


def test_only_the_features_are_kept_for_the_backward_pass():
    seen = set()
    x = torch.randn(1, 64, 8, 8, requires_grad=True)

    def pack(t):
        if t.dim() == 3:
            seen.add((t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()))
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        out = covariance_root(x, polar_express_steps(7))
    kept = sum(size for _, size in seen)
    assert out.shape == (1, 64, 64)
    # the features centred and scaled, and the root
    assert kept <= 5 * 64 * 64 * 4
