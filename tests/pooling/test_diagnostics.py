import math

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.pooling import covariance, matrix_sqrt
from convsmith.pooling.diagnostics import diagnose

D = torch.float64


def with_spectrum(values, m=50):
    """Features whose covariance has exactly these eigenvalues."""
    d = len(values)
    x = torch.randn(d, m, dtype=D)
    x = x - x.mean(1, keepdim=True)
    white = torch.linalg.inv(torch.linalg.cholesky(x @ x.T / m)) @ x
    return torch.tensor(values, dtype=D).sqrt()[:, None] * white


def test_numbers_of_a_known_spectrum():
    found = diagnose(with_spectrum([4.0, 2.0, 1.0, 1.0])[None])
    assert found.rank == 4
    assert found.condition == pytest.approx(4.0)
    assert found.shares == pytest.approx((0.5, 0.25, 0.125, 0.125))
    entropy = 0.5 * math.log(2) + 0.25 * math.log(4) + 0.25 * math.log(8)
    assert found.effective_rank == pytest.approx(math.exp(entropy))
    assert found.dead == 0


def test_residual_growth_and_response_are_the_iterations():
    x = torch.randn(3, 6, 40, dtype=D)
    a = covariance(x)
    a = a / a.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    y = matrix_sqrt(a, iterations=4, normalization=None)
    residual = ((y @ y - a).flatten(1).norm(dim=1) / a.flatten(1).norm(dim=1)).mean()
    found = diagnose(x, iterations=4)
    assert found.residual == pytest.approx(float(residual))
    assert found.growth < 1.5**4
    exact = torch.linalg.eigvalsh(a).flip(1).sqrt()
    expected = (torch.linalg.eigvalsh(y).flip(1) / exact).mean(0)
    assert found.response == pytest.approx(expected.tolist())


def test_rank_and_dead_samples():
    x = torch.randn(3, 8, 4, dtype=D)
    x[1] = 0.3
    found = diagnose(x)
    assert (found.rank, found.dead, found.samples) == (3, 1, 3)
    assert found.response[3:] == (0.0,) * 5


def test_bad_input():
    with pytest.raises(InvalidArgument, match="constant over its positions"):
        diagnose(torch.ones(2, 3, 4))
    with pytest.raises(InvalidArgument, match="at least 1"):
        diagnose(torch.randn(2, 3, 4), iterations=0)
