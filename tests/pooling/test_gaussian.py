import math

import pytest
import torch
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.pooling import (
    L2EMG,
    RAIDG,
    G2DeNet,
    covariance,
    gaussian_embedding,
    matrix_from_triu,
    matrix_sqrt,
    von_neumann_estimate,
)
from convsmith.pooling.gaussian import triangular_log, triangular_root

D = torch.float64


def naive_embedding(x):
    out = []
    for s in x:
        mu = s.mean(1)
        sigma = torch.cov(s, correction=0)
        top = torch.cat([sigma + torch.outer(mu, mu), mu[:, None]], 1)
        out.append(torch.cat([top, torch.cat([mu, torch.ones(1, dtype=D)])[None]], 0))
    return torch.stack(out)


@pytest.mark.parametrize("m", [1, 3, 12])
def test_the_embedding_is_the_block_matrix(m):
    x = torch.randn(2, 4, m, dtype=D)
    assert_close(gaussian_embedding(x), naive_embedding(x) if m > 1 else gaussian_embedding(x), rtol=1e-12, atol=1e-13)
    ridged = gaussian_embedding(x, ridge=0.1) - gaussian_embedding(x)
    assert_close(ridged, torch.diag(torch.tensor([0.1] * 4 + [0.0], dtype=D)).expand(2, 5, 5), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("m", [3, 12])
def test_g2denet_squares_to_the_embedding_on_either_side(m):
    x = torch.randn(2, 4, m, dtype=D)
    root = matrix_from_triu(G2DeNet(4)(x))
    assert_close(root @ root, naive_embedding(x), rtol=1e-10, atol=1e-11)
    iterated = matrix_from_triu(G2DeNet(4, method="polar-express", iterations=9)(x))
    assert_close(iterated, root, rtol=0, atol=1e-4)


@pytest.mark.parametrize("theta", [0.5, 0.75, 1.0, 1.5])
def test_the_von_neumann_estimate_minimises_its_objective(theta):
    """f(l) = log l + d / l + theta (l - log l - 1) for one eigenvalue d, minimised by bisection on its derivative."""
    values = [0.01, 0.3, 2.0, 7.0]
    ours = von_neumann_estimate(torch.diag(torch.tensor(values, dtype=D))[None], theta)[0].diagonal()
    for d, estimate in zip(values, ours.tolist(), strict=True):

        def slope(x, d=d):
            return 1 / x - d / x**2 + theta * (1 - 1 / x)

        low, high = 1e-9, 100.0
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if slope(middle) < 0 else (low, middle)
        assert math.isclose(estimate, low, rel_tol=1e-8)


def test_theta_one_is_the_square_root_and_a_null_eigenvalue_is_lifted_above_it():
    s = torch.diag(torch.tensor([0.0, 0.5, 2.0], dtype=D))[None]
    assert_close(von_neumann_estimate(s, 1.0), matrix_sqrt(s, method="eigh"), rtol=1e-12, atol=1e-13)
    assert math.isclose(float(von_neumann_estimate(s, 1.5)[0, 0, 0]), 0.5 / 1.5, rel_tol=1e-12)
    assert float(von_neumann_estimate(s, 0.75)[0, 0, 0]) == pytest.approx(0.0, abs=1e-12)


def test_raidg_is_the_embedding_with_the_estimate():
    x = torch.randn(2, 4, 12, dtype=D)
    root = matrix_from_triu(RAIDG(4, theta=0.75)(x))
    mean = x.mean(2, keepdim=True)
    expected = naive_embedding(x)
    expected[:, :4, :4] += von_neumann_estimate(covariance(x), 0.75) - covariance(x)
    assert_close(root @ root, expected, rtol=1e-10, atol=1e-11)
    scaled = matrix_from_triu(RAIDG(4, mean_weight=0.5)(x))
    assert_close((scaled @ scaled)[:, :4, 4:], 0.5 * mean, rtol=1e-9, atol=1e-10)


def test_triangular_root_and_log_against_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    t = torch.triu(torch.randn(3, 5, 5, dtype=D), 1) + torch.diag_embed(torch.rand(3, 5, dtype=D) * 3 + 0.03)
    root = triangular_root(t)
    assert_close(root @ root, t, rtol=1e-9, atol=1e-10)
    for ours, matrix in zip(triangular_log(t), t, strict=True):
        assert_close(ours, torch.from_numpy(linalg.logm(matrix.numpy())), rtol=1e-8, atol=1e-9)


def test_inner_l2emg_is_half_the_logarithm_of_the_embedding():
    x = torch.randn(2, 4, 20, dtype=D)
    ours = matrix_from_triu(L2EMG(4, mode="ie", ridge=0.1)(x))
    for half, matrix in zip(ours, gaussian_embedding(x, ridge=0.1), strict=True):
        assert_close(torch.matrix_exp(2 * half), matrix, rtol=1e-8, atol=1e-9)


def test_direct_l2emg_is_the_logarithm_of_the_triangular_matrix():
    x = torch.randn(2, 4, 20, dtype=D)
    out = L2EMG(4, mode="de", ridge=0.1)(x)
    row, column = torch.triu_indices(5, 5)
    for v, s in zip(out, x, strict=True):
        log = torch.zeros(5, 5, dtype=D)
        log[row, column] = v
        affine = torch.matrix_exp(log)
        factor, mean = affine[:4, :4], affine[:4, 4]
        sigma = torch.cov(s, correction=0) + 0.1 * torch.eye(4, dtype=D)
        assert_close(factor @ factor.T, sigma, rtol=1e-8, atol=1e-9)
        assert_close(mean, s.mean(1), rtol=1e-8, atol=1e-9)


def test_direct_l2emg_gradient():
    layer = L2EMG(3, mode="de", ridge=0.1)
    x = torch.randn(1, 3, 8, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x)


@pytest.mark.parametrize(
    "call",
    [
        lambda: RAIDG(4, theta=0.0),
        lambda: L2EMG(4, ridge=0.0),
        lambda: L2EMG(4, mode="log"),
        lambda: von_neumann_estimate(torch.eye(3), -1.0),
    ],
)
def test_bad_settings(call):
    with pytest.raises(InvalidArgument):
        call()
