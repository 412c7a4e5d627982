import math

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.pooling import matrix_log, matrix_power, matrix_sqrt
from convsmith.pooling.matrix_root import METHODS

D = torch.float64


def spd(b, d, m=None):
    x = torch.randn(b, d, m or 3 * d, dtype=D)
    return x @ x.mT / x.shape[2]


def naive_function(a, f, df):
    """U f(L) U^T and the Daleckii-Krein table, one entry at a time."""
    values, u = torch.linalg.eigh(a)
    n = len(values)
    table = torch.empty(n, n, dtype=D)
    for i in range(n):
        for j in range(n):
            x, y = float(values[i]), float(values[j])
            table[i, j] = df(x) if abs(x - y) < 1e-9 else (f(x) - f(y)) / (x - y)
    return u @ torch.diag(torch.tensor([f(float(v)) for v in values], dtype=D)) @ u.mT, u, table


@pytest.mark.parametrize("exponent", [0.25, 0.5, 0.75, 1.0, 1.5, 2.0, -0.5])
def test_powers_and_their_gradient(exponent):
    a = spd(1, 6).requires_grad_()
    expected, u, table = naive_function(a[0].detach(), lambda x: x**exponent, lambda x: exponent * x ** (exponent - 1))
    out = matrix_power(a, exponent)
    assert_close(out[0], expected, rtol=1e-10, atol=1e-11)
    g = torch.randn(1, 6, 6, dtype=D)
    (ours,) = torch.autograd.grad(out, a, g)
    symmetric = (g[0] + g[0].mT) / 2
    assert_close(ours[0], u @ (table * (u.mT @ symmetric @ u)) @ u.mT, rtol=1e-8, atol=1e-9)


def test_logarithm_and_its_gradient():
    a = spd(1, 5).requires_grad_()
    expected, u, table = naive_function(a[0].detach(), lambda x: math.log(x + 0.1), lambda x: 1 / (x + 0.1))
    out = matrix_log(a, ridge=0.1)
    assert_close(out[0], expected, rtol=1e-10, atol=1e-11)
    g = torch.randn(1, 5, 5, dtype=D)
    (ours,) = torch.autograd.grad(out, a, g)
    assert_close(ours[0], u @ (table * (u.mT @ ((g[0] + g[0].mT) / 2) @ u)) @ u.mT, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("normalization", ["trace", "frobenius", None])
@pytest.mark.parametrize("compensate", [True, False])
def test_gradcheck_and_gradgradcheck(method, normalization, compensate):
    a = spd(1, 4)
    a = (a / a.diagonal(dim1=1, dim2=2).sum() * (0.9 if normalization is None else 3)).requires_grad_()

    def f(a):
        a = (a + a.mT) / 2 if method == "eigh" else a
        return matrix_sqrt(a, method=method, normalization=normalization, compensate=compensate, iterations=3)

    assert gradcheck(f, a)
    assert gradgradcheck(f, a)


@pytest.mark.parametrize("exponent", [0.3, 0.5, 1.0, 1.5])
def test_powers_gradgradcheck(exponent):
    a = spd(1, 4).requires_grad_()
    assert gradcheck(lambda a: matrix_power((a + a.mT) / 2, exponent), a)
    assert gradgradcheck(lambda a: matrix_power((a + a.mT) / 2, exponent), a)


def test_identity_repeated_and_null_eigenvalues_have_finite_exact_gradients():
    """The published gradients divide by the eigenvalue gap and give NaN in all three cases."""
    cases = [torch.eye(4, dtype=D), torch.diag(torch.tensor([2.0, 2, 1, 1], dtype=D))]
    g = torch.randn(4, 4, dtype=D)
    for a in cases:
        a = a[None].clone().requires_grad_()
        (ours,) = torch.autograd.grad(matrix_sqrt(a, method="eigh"), a, g[None], create_graph=True)
        roots = a[0].detach().diagonal().sqrt()
        expected = (g + g.mT) / 2 / (roots[:, None] + roots[None, :])
        assert_close(ours[0], expected, rtol=1e-12, atol=1e-13)
        (second,) = torch.autograd.grad(ours.sum(), a)
        assert second.isfinite().all()
    null = torch.diag(torch.tensor([1.0, 0.5, 0, 0], dtype=D))[None].requires_grad_()
    for exponent in (0.25, 0.5, 0.75):
        (ours,) = torch.autograd.grad(matrix_power(null, exponent), null, g[None])
        assert ours.isfinite().all()
        assert ours[0, 2:, 2:].abs().max() == 0


def test_agrees_with_scipy():
    linalg = pytest.importorskip("scipy.linalg")
    a = spd(1, 6)
    expected = torch.from_numpy(linalg.sqrtm(a[0].numpy()).real)
    for method, n in (("eigh", 1), ("newton-schulz", 20), ("polar-express", 9)):
        assert_close(matrix_sqrt(a, method=method, iterations=n)[0], expected, rtol=1e-9, atol=1e-9)


def test_agrees_with_torchs_own_root_where_there_is_one():
    own = getattr(torch.linalg, "matrix_sqrth", None)
    if own is None:
        pytest.skip("this torch has no matrix_sqrth")
    a = spd(2, 5)
    assert_close(matrix_sqrt(a, method="eigh"), own(a), rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("method", METHODS)
def test_inputs_are_not_changed_and_zero_matrices_are_zero(method):
    a = spd(2, 5)
    a[1] = 0
    a.requires_grad_()
    before = a.detach().clone()
    out = matrix_sqrt(a, method=method)
    out.sum().backward()
    assert torch.equal(a.detach(), before)
    assert out[1].abs().max() == 0
    assert a.grad.isfinite().all()


@pytest.mark.parametrize("method", METHODS)
def test_one_matrix_and_many_leading_dimensions(method):
    a = spd(6, 4)
    out = matrix_sqrt(a, method=method)
    assert_close(matrix_sqrt(a[0], method=method), out[0], rtol=1e-12, atol=1e-13)
    assert_close(matrix_sqrt(a.view(2, 3, 4, 4), method=method), out.view(2, 3, 4, 4), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("method", ["newton-schulz", "polar-express", "eigh"])
def test_vmap_and_jacrev(method):
    a = spd(3, 3)
    mapped = torch.func.vmap(lambda m: matrix_sqrt(m, method=method))(a)
    assert_close(mapped, matrix_sqrt(a, method=method), rtol=1e-12, atol=1e-13)
    jacobian = torch.func.jacrev(lambda m: matrix_sqrt(m, method=method))(a[0])
    expected = torch.autograd.functional.jacobian(lambda m: matrix_sqrt(m, method=method), a[0])
    assert_close(jacobian, expected, rtol=1e-10, atol=1e-11)


#: every diagonal entry and every 2 x 2 minor is positive
INDEFINITE = torch.tensor([[1.0, 0.9, -0.9], [0.9, 1.0, 0.9], [-0.9, 0.9, 1.0]])
#: its symmetric part has eigenvalues 3.5 and -1.5
SKEWED = torch.tensor([[1.0, 5.0], [0.0, 1.0]])
BAD = [
    (lambda: matrix_sqrt(torch.randn(2, 3, 4)), "square matrices"),
    (lambda: matrix_sqrt(torch.ones(2, 3, 3, dtype=torch.long)), "floating point"),
    (lambda: matrix_sqrt(torch.full((1, 2, 2), math.inf)), "must be finite"),
    (lambda: matrix_sqrt(torch.eye(3), method="newton"), "method has no such choice"),
    (lambda: matrix_sqrt(torch.eye(3), normalization="l2"), "one of 'trace', 'frobenius', None"),
    (lambda: matrix_sqrt(torch.eye(3), iterations=0), "at least 1"),
    (lambda: matrix_power(torch.eye(3), "half"), "exponent must be a finite number"),
    (lambda: matrix_power(torch.eye(3), 0.3, method="newton-schulz"), "square root only"),
    (lambda: matrix_log(torch.eye(3), ridge=0.0), "ridge must be a finite number above 0"),
    (lambda: matrix_sqrt(torch.diag(torch.tensor([1.0, -0.5]))), "positive semi-definite"),
    (lambda: matrix_sqrt(torch.tensor([[1.0, 2.0], [2.0, 1.0]]), method="eigh"), "positive semi-definite"),
    (lambda: matrix_sqrt(INDEFINITE, method="polar-express"), "1 of 1 have eigenvalues below zero, down to -0.8"),
    (lambda: matrix_sqrt(SKEWED, method="polar-express"), "1 of 1 have eigenvalues below zero, down to -1.5"),
    (lambda: matrix_log(SKEWED), "1 of 1 have eigenvalues below zero, down to -1.5"),
    (lambda: matrix_power(-torch.eye(3), 0.3), "positive semi-definite"),
    (lambda: matrix_log(-torch.eye(3)), "positive semi-definite"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_one_clear_error(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()


@pytest.mark.parametrize("method", ["eigh", "polar-express"])
def test_methods_that_want_a_covariance_take_the_symmetric_part(method):
    """Regression: the minimax steps ran away on eigenvalues that are not real (NaN after five)."""
    points, skew = torch.randn(2, 6, 20, dtype=torch.float64), torch.randn(2, 6, 6, dtype=torch.float64)
    a = points @ points.mT / 20 + 0.3 * (skew - skew.mT)
    symmetric = (a + a.mT) / 2
    root = matrix_sqrt(a, method=method, iterations=8)
    assert torch.equal(root, matrix_sqrt(symmetric, method=method, iterations=8))
    assert_close(root @ root, symmetric, rtol=0, atol=1e-8)
