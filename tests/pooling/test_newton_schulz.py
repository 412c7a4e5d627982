import math
import warnings

import pytest
import torch
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from convsmith.errors import InvalidArgument
from convsmith.pooling import isqrt_covariance, matrix_sqrt
from convsmith.pooling.newton_schulz import SAFE_STEPS, newton_schulz_steps
from convsmith.pooling.product_form import kept_matrices, product_of, pull_back, recomputed, run
from experiments.benchmarks.pooling_published import coupled, plain_isqrt

D = torch.float64
N = (1, 2, 3, 5, 7)


def matmuls(steps, root):
    """Count the matrix products of `run` without the backward pass."""
    count = 0
    for k, step in enumerate(steps):
        last = k == len(steps) - 1
        count += step.squarings
        if k == 0 and root:
            count += 1 if last else 2
        else:
            count += (k > 0) + (0 if last else 2)
    return count


def naive_newton_schulz(a, n):
    """CVPR 2018, equations (4) to (6), every matrix of every step, nothing left out."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype)
    y, z = a, eye.expand_as(a)
    for _ in range(n):
        t = 0.5 * (3 * eye - z @ y)
        y, z = y @ t, t @ z
    return y, z


def spd(b, d, m=None, dtype=D):
    x = torch.randn(b, d, m or 2 * d, dtype=dtype)
    a = x @ x.mT
    return a / a.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]


def from_spectrum(values, seed=0):
    values = torch.as_tensor(values, dtype=D)
    q, _ = torch.linalg.qr(
        torch.randn(len(values), len(values), dtype=D, generator=torch.Generator().manual_seed(seed))
    )
    return ((q * values) @ q.mT)[None]


@pytest.mark.parametrize("n", [*N, 4, 6, 20])
def test_fewer_products_give_the_same_iterates(n):
    a = spd(3, 7)
    y, z = naive_newton_schulz(a, n)
    assert_close(run(a, newton_schulz_steps(n), True)[0], y, rtol=1e-11, atol=1e-13)
    assert_close(run(a, newton_schulz_steps(n), True, symmetric=True)[0], y, rtol=1e-11, atol=1e-13)
    assert_close(run(a, newton_schulz_steps(n), False)[0], z, rtol=1e-10, atol=1e-12)
    assert_close(coupled(a, n)[0], y, rtol=1e-12, atol=1e-14)


def test_symmetric_blocks_agree_with_the_plain_product_at_their_size():
    a = spd(2, 150)
    with torch.no_grad():
        for root in (True, False):
            fast = run(a, newton_schulz_steps(5), root, symmetric=True)[0]
            assert torch.equal(fast, fast.mT) or (fast - fast.mT).abs().max() < 1e-13
            assert_close(fast, run(a, newton_schulz_steps(5), root)[0], rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", [*N, 4, 6])
@pytest.mark.parametrize("root", [True, False])
def test_hand_written_backward_equals_autograd_of_the_published_recurrence(n, root):
    a = spd(2, 6).requires_grad_()
    g = torch.randn(2, 6, 6, dtype=D)
    naive = naive_newton_schulz(a, n)[0 if root else 1]
    steps = newton_schulz_steps(n)
    (expected,) = torch.autograd.grad(naive, a, g, retain_graph=True)
    (ours,) = torch.autograd.grad(recomputed(lambda a: run(a, steps, root)[0], a), a, g)
    assert_close(ours, expected, rtol=1e-11, atol=1e-12)
    (expected,) = torch.autograd.grad(naive, a, g + g.mT)
    _, chain = run(a.detach(), steps, root, symmetric=True)
    assert len(chain) == kept_matrices(steps, root)
    assert_close(pull_back(chain, steps, root, g + g.mT), expected, rtol=1e-11, atol=1e-12)
    assert_close(product_of(chain, steps, root), naive.detach(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", N)
def test_gradcheck_at_an_input_that_is_not_symmetric(n):
    a = (spd(1, 4) + 0.05 * torch.randn(1, 4, 4, dtype=D)).requires_grad_()

    def f(a):
        return matrix_sqrt(a, iterations=n)

    assert torch.autograd.gradcheck(f, a)
    assert torch.autograd.gradgradcheck(f, a)


def test_the_gradient_is_not_transposed():
    """Regression: the published code returns the transpose for a cotangent that is not symmetric."""
    a = spd(1, 5).requires_grad_()
    g = torch.triu(torch.randn(1, 5, 5, dtype=D))
    (ours,) = torch.autograd.grad(matrix_sqrt(a, normalization=None), a, g)
    (naive,) = torch.autograd.grad(naive_newton_schulz(a, 5)[0], a, g)
    assert_close(ours, naive, rtol=1e-11, atol=1e-12)
    assert (ours - naive.mT).abs().max() > 1e-2


@pytest.mark.parametrize("n", [2, 3, 5, 7, 10])
def test_the_published_form_takes_3n_minus_3_products_and_ours_fewer(n):
    d = 8
    a = spd(1, d)
    one = 2 * d**3
    with FlopCounterMode(display=False) as counter:
        coupled(a, n)
    assert counter.get_total_flops() == (3 * n - 3) * one
    for root in (True, False):
        with FlopCounterMode(display=False) as counter:
            run(a, newton_schulz_steps(n), root)
        assert counter.get_total_flops() == matmuls(newton_schulz_steps(n), root) * one
    assert matmuls(newton_schulz_steps(5), True) == 10


def test_the_benchmark_with_autograd_alone_computes_the_same():
    x, g = torch.randn(2, 6, 5, 5, dtype=D, requires_grad=True), torch.randn(2, 6, 6, dtype=D)
    plain, ours = plain_isqrt(x), isqrt_covariance(x)
    assert_close(plain, ours, rtol=1e-11, atol=1e-12)
    (expected,), (found,) = (torch.autograd.grad(out, x, g) for out in (plain, ours))
    assert_close(expected, found, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("n", N)
def test_a_diagonal_matrix_follows_the_scalar_recurrence(n):
    values = [0.5, 0.3, 0.15, 0.05, 0.0]
    out = matrix_sqrt(torch.diag(torch.tensor(values, dtype=D))[None], iterations=n)[0]
    for i, a in enumerate(values):
        y, z = a, 1.0
        for _ in range(n):
            t = 0.5 * (3 - z * y)
            y, z = y * t, t * z
        assert math.isclose(float(out[i, i]), y, rel_tol=1e-12, abs_tol=1e-15)
    assert (out - torch.diag(out.diagonal())).abs().max() == 0


def test_one_iteration_is_half_a_times_3_minus_a():
    a = spd(2, 5)
    expected = 0.5 * a @ (3 * torch.eye(5, dtype=D) - a)
    assert_close(matrix_sqrt(a, iterations=1, normalization=None), expected, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize("normalization", ["trace", "frobenius"])
@pytest.mark.parametrize("n", N)
def test_scale_and_rotation_equivariance(normalization, n):
    a = spd(2, 6)
    root = matrix_sqrt(a, iterations=n, normalization=normalization)
    assert_close(
        matrix_sqrt(37.0 * a, iterations=n, normalization=normalization), math.sqrt(37) * root, rtol=1e-12, atol=1e-13
    )
    q, _ = torch.linalg.qr(torch.randn(6, 6, dtype=D))
    turned = matrix_sqrt(q @ a @ q.mT, iterations=n, normalization=normalization)
    assert_close(turned, q @ root @ q.mT, rtol=1e-11, atol=1e-12)


# relative Frobenius error of the published iteration on two fixed spectra of 64 values, recomputed from the scalar
# recurrence below with Python floats
POWER_LAW = [(k + 1.0) ** -1.5 for k in range(64)]
FLAT = [1.0 - 0.9 * k / 63 for k in range(64)]


def scalar_error(spectrum, normalization, n):
    size = sum(spectrum) if normalization == "trace" else math.sqrt(sum(v * v for v in spectrum))
    error = total = 0.0
    for v in spectrum:
        a = v / size
        y, z = a, 1.0
        for _ in range(n):
            t = 0.5 * (3 - z * y)
            y, z = y * t, t * z
        error += (y - math.sqrt(a)) ** 2
        total += a
    return math.sqrt(error / total)


@pytest.mark.parametrize("spectrum", [POWER_LAW, FLAT], ids=["power-law", "flat"])
def test_convergence_follows_the_scalar_filter_and_frobenius_is_closer(spectrum):
    a = from_spectrum(spectrum)
    exact = matrix_sqrt(a, method="eigh")
    before = {}
    for n in (1, 3, 5, 7, 10, 15):
        for normalization in ("trace", "frobenius"):
            root = matrix_sqrt(a, iterations=n, normalization=normalization)
            error = float((root - exact).norm() / exact.norm())
            assert math.isclose(error, scalar_error(spectrum, normalization, n), rel_tol=1e-2, abs_tol=1e-11)
            assert error <= before.get(normalization, 1.0) + 1e-11
            before[normalization] = error
        assert before["frobenius"] <= before["trace"] + 1e-11


def test_five_iterations_are_a_filter_far_from_the_root():
    """Section 1.6 of the facts: 20 to 50 % at N = 5, so nobody should test for a square root there."""
    assert 0.15 < scalar_error(POWER_LAW, "trace", 5) < 0.6
    assert 0.15 < scalar_error(FLAT, "trace", 5) < 0.6


def test_at_convergence_the_square_is_the_matrix_and_yz_the_projector():
    full = from_spectrum(FLAT)
    root = matrix_sqrt(full, iterations=20)
    assert_close(root @ root, full, rtol=0, atol=1e-12)
    deficient = from_spectrum([*FLAT[:48], *[0.0] * 16])
    a = deficient / deficient.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    y, z = run(a, newton_schulz_steps(20), True)[0], run(a, newton_schulz_steps(20), False)[0]
    values, vectors = torch.linalg.eigh(a)
    keep = vectors * (values > 1e-12)[:, None, :]
    assert_close(y @ z, keep @ keep.mT, rtol=0, atol=1e-7)


@pytest.mark.parametrize("m", [49, 196])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [5, 7])
def test_rank_deficient_matrices_stay_finite_and_close(m, dtype, n):
    x = torch.randn(1, 256, m, dtype=D).relu()
    x = x - x.mean(2, keepdim=True)
    a = x @ x.mT / m
    low = matrix_sqrt(a.to(dtype), iterations=n)
    assert low.dtype == dtype
    assert low.isfinite().all()
    reference = matrix_sqrt(a, iterations=n)
    assert float((low.to(D) - reference).norm() / reference.norm()) < {torch.float32: 1e-5}.get(dtype, 1e-2)


def test_too_many_iterations_warn_and_are_right_to():
    x = torch.randn(1, 64, 20)
    a = x @ x.mT
    with pytest.warns(RuntimeWarning, match="more than the 20 that are safe"):
        broken = matrix_sqrt(a, iterations=40)
    assert not broken.isfinite().all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert matrix_sqrt(a, iterations=SAFE_STEPS[torch.float32]).isfinite().all()


def test_without_normalisation_a_large_trace_diverges_and_says_so():
    a = 50.0 * spd(3, 8)
    with pytest.warns(RuntimeWarning, match=r'diverged on 3 of 3.*Use normalization="trace"'):
        matrix_sqrt(a, normalization=None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        matrix_sqrt(spd(3, 8), normalization=None)


@pytest.mark.parametrize("n", [3, 5, 7])
def test_the_gradient_stays_bounded_as_an_eigenvalue_vanishes(n):
    """At most (3/2)^N times a constant, where the exact root's gradient grows without bound."""
    bound = 1.5**n + 1
    exact = []
    for small in (1e-2, 1e-4, 1e-8):
        a = torch.diag(torch.tensor([0.9, 0.1 - small, small], dtype=D))[None].requires_grad_()
        g = torch.zeros(1, 3, 3, dtype=D)
        g[0, 2, 2] = 1.0
        (ours,) = torch.autograd.grad(matrix_sqrt(a, iterations=n, normalization=None), a, g)
        assert ours.norm() < bound
        (e,) = torch.autograd.grad(matrix_sqrt(a, method="eigh"), a, g)
        exact.append(float(e.norm()))
    assert exact[2] > 1000 > 10 > exact[0]


@pytest.mark.parametrize("n", [0, -1, 2.5, True])
def test_bad_numbers_of_iterations(n):
    with pytest.raises(InvalidArgument, match="iterations must be a whole number at least 1"):
        newton_schulz_steps(n)
