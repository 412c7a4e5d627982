import math

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.pooling import matrix_sqrt
from convsmith.pooling.newton_schulz import newton_schulz_steps
from convsmith.pooling.remez import best_quintic, level_reach, polar_express_steps, schedule
from tests.pooling.test_newton_schulz import matmuls

D = torch.float64


def errors_of(iterations, **interval):
    return [error for _, error in schedule(iterations, **interval)]


@pytest.mark.parametrize("interval", [(0.001, 1.0), (0.05, 1.9), (0.3, 1.7), (0.8, 1.2), (0.97, 1.03)])
def test_the_best_quintic_equioscillates_at_four_points(interval):
    """Chebyshev: an odd quintic (three coefficients) is the best on [l, u] when its error alternates four times."""
    step, error = best_quintic(*interval)
    low, high = interval
    x = torch.linspace(low, high, 200_001, dtype=D)
    a, b, c = step.coefficients
    deviation = 1 - (a * x + b * x**3 + c * x**5)
    assert math.isclose(float(deviation.abs().max()), error, rel_tol=1e-6, abs_tol=1e-13)
    signs, level = [], error * (1 - 1e-4)
    for value in deviation[deviation.abs() >= level].tolist():
        if not signs or signs[-1] != (value > 0):
            signs.append(value > 0)
    assert len(signs) == 4


def test_no_nearby_polynomial_is_better():
    low, high = 0.05, 1.9
    step, error = best_quintic(low, high)
    x = torch.linspace(low, high, 20_001, dtype=D)
    for seed in range(200):
        nudge = torch.randn(3, dtype=D, generator=torch.Generator().manual_seed(seed)) * 1e-3
        a, b, c = (k + float(n) for k, n in zip(step.coefficients, nudge, strict=True))
        assert float((1 - (a * x + b * x**3 + c * x**5)).abs().max()) >= error


def test_the_schedule_converges_as_announced_whatever_the_spectrum():
    errors = errors_of(8, largest=1.0)
    assert errors == sorted(errors, reverse=True)
    assert errors[4] < 0.13
    assert errors[5] < 1.3e-3
    assert errors[6] < 4e-9
    errors = errors_of(8)
    assert errors == sorted(errors, reverse=True)
    assert errors[4] < 0.16
    assert errors[5] < 2.6e-3
    assert errors[6] < 1e-8
    for seed in range(3):
        values = 10 ** (-6 * torch.rand(40, dtype=D, generator=torch.Generator().manual_seed(seed)))
        values[0], values[1] = 1.0, 1e-6
        a = torch.diag(values)[None]
        root = matrix_sqrt(a, method="polar-express", iterations=6, normalization=None)
        relative = (root[0].diagonal() / values.sqrt() - 1).abs().max()
        assert float(relative) <= errors[5] * (1 + 1e-6)


def slopes(steps, s):
    """The slopes of the root s h(s) and of the polar factor h at singular values s."""
    s = s.clone().requires_grad_()
    h = s
    for step in steps:
        a, b, c = step.coefficients
        h = a * h + b * h**3 + c * h**5
    (slope,) = torch.autograd.grad(h.sum(), s)
    return (s * slope + h).detach(), slope


def test_the_reach_makes_the_steps_level_at_one_and_calm_below():
    assert level_reach(1e-3) == pytest.approx(1.2184, abs=1e-4)
    s = torch.linspace(0.0, 1.0, 200_001, dtype=D)
    for n in (3, 4, 5, 6, 7):
        of_root, slope = slopes(polar_express_steps(n), s)
        of_root_in_paper, _ = slopes(polar_express_steps(n, largest=1.0), s)
        assert abs(float(slope[-1])) < 1e-9
        # the slope of the root s h(s) is what rounding in s is multiplied by
        assert float(of_root.abs().max()) < 115
        assert n == 7 or float(of_root_in_paper.abs().max()) > 3900
    assert errors_of(5)[-1] < 1.5 * errors_of(5, largest=1.0)[-1]
    assert errors_of(7)[-1] < 5.5 * errors_of(7, largest=1.0)[-1]


@pytest.mark.parametrize("smallest", [1e-6, 1e-3, 0.1, 0.5, 0.9, 0.99, 0.999])
def test_the_reach_exists_for_every_interval(smallest):
    a, b, c = polar_express_steps(1, smallest)[0].coefficients
    assert abs(a + 3 * b + 5 * c) < 1e-3 * a
    assert 1.0 <= level_reach(smallest) < 1.22


def test_seven_steps_beat_ten_newton_schulz_steps_at_fewer_products():
    values = torch.tensor([(k + 1.0) ** -2 for k in range(64)], dtype=D)
    a, exact = torch.diag(values)[None], torch.diag(values.sqrt())[None]
    ours = (matrix_sqrt(a, method="polar-express", iterations=7) - exact).norm() / exact.norm()
    theirs = (matrix_sqrt(a, iterations=10) - exact).norm() / exact.norm()
    assert ours < 1e-3 * theirs
    assert matmuls(polar_express_steps(7), True) < 3 * 10 - 3
    assert matmuls(newton_schulz_steps(10), True) < 3 * 10 - 3


def test_a_null_space_stays_null():
    a = torch.diag(torch.tensor([1.0, 0.5, 0.0], dtype=D))[None]
    assert matrix_sqrt(a, method="polar-express", iterations=7)[0, 2, 2] == 0


@pytest.mark.parametrize("call", [lambda: best_quintic(0.0, 1.0), lambda: best_quintic(1.0, 0.5)])
def test_bad_intervals(call):
    with pytest.raises(InvalidArgument, match="0 < low < high"):
        call()


def test_bad_schedules():
    with pytest.raises(InvalidArgument, match="above 0 and below 1"):
        polar_express_steps(5, 1.5)
    with pytest.raises(InvalidArgument, match="largest must be a finite number at least 1"):
        polar_express_steps(5, largest=0.9)
    with pytest.raises(InvalidArgument, match="at least 1"):
        polar_express_steps(0)
