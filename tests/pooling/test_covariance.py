import math

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.pooling import covariance, matrix_from_triu, triu_size, triu_vector

D = torch.float64


def naive_covariance(x, center=True):
    """Sum of outer products over positions, one at a time (ICCV 2017, section 3)."""
    b, c, m = x.shape
    out = torch.zeros(b, c, c, dtype=x.dtype)
    for s in range(b):
        mean = sum(x[s, :, k] for k in range(m)) / m if center else torch.zeros(c, dtype=x.dtype)
        for k in range(m):
            out[s] += torch.outer(x[s, :, k] - mean, x[s, :, k] - mean) / m
    return out


@given(b=st.integers(0, 3), c=st.integers(1, 5), m=st.integers(1, 7), center=st.booleans())
def test_equals_the_sum_of_outer_products(b, c, m, center):
    x = torch.randn(b, c, m, dtype=D)
    assert_close(covariance(x, center=center), naive_covariance(x, center), rtol=1e-12, atol=1e-13)


def test_equals_torch_cov_with_correction_zero():
    x = torch.randn(2, 5, 3, 4, dtype=D)
    expected = torch.stack([torch.cov(s.flatten(1), correction=0) for s in x])
    assert_close(covariance(x), expected, rtol=1e-13, atol=1e-14)


def test_shifts_and_permutations_of_positions_change_nothing():
    x = torch.randn(2, 5, 12, dtype=D)
    assert_close(covariance(x + torch.randn(2, 5, 1, dtype=D)), covariance(x), rtol=1e-12, atol=1e-13)
    assert_close(covariance(x[:, :, torch.randperm(12)]), covariance(x), rtol=1e-12, atol=1e-13)


def test_weights_of_a_mask_drop_positions():
    x = torch.randn(2, 4, 6, dtype=D)
    weights = torch.tensor([[1.0, 1, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0]], dtype=D)
    assert_close(covariance(x, weights=weights), covariance(x[:, :, :4]), rtol=1e-12, atol=1e-13)
    assert_close(covariance(x, weights=weights * 7), covariance(x, weights=weights), rtol=1e-12, atol=1e-13)
    assert covariance(x, weights=weights * 0).abs().max() == 0


@pytest.mark.parametrize("center", [True, False])
def test_gradients_with_cotangents_that_are_not_symmetric(center):
    x = torch.randn(2, 3, 4, dtype=D, requires_grad=True)
    assert gradcheck(lambda x: covariance(x, center=center), x)
    assert gradgradcheck(lambda x: covariance(x, center=center), x)


@pytest.mark.parametrize("value", [0.0, 0.3, 1e4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_map_has_exactly_no_covariance(value, dtype):
    x = torch.full((2, 4, 49), value, dtype=dtype, requires_grad=True)
    out = covariance(x)
    out.sum().backward()
    assert out.abs().max() == 0
    assert x.grad.isfinite().all()


def test_a_small_signal_on_a_large_mean_is_kept():
    x = 100 + 0.01 * torch.randn(1, 4, 49)
    assert_close(covariance(x).double(), covariance(x.double()), rtol=1e-2, atol=1e-9)
    assert covariance(x).abs().max() > 5e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    x = (100 * torch.randn(2, 8, 64)).to(dtype)
    out = covariance(x)
    assert out.dtype == dtype
    # squares of 100 summed in float16 would overflow; the result rounds once
    assert_close(out.float(), covariance(x.float()).to(dtype).float(), rtol=0, atol=0)


def test_autocast_does_not_reach_inside():
    x = torch.randn(2, 8, 30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = covariance(x)
    assert inside.dtype == torch.float32
    assert torch.equal(inside, covariance(x))


def test_triu_is_row_major_without_scaling():
    a = torch.arange(9.0).view(1, 3, 3)
    assert triu_vector(a).tolist() == [[0, 1, 2, 4, 5, 8]]


@given(d=st.integers(1, 9), isometric=st.booleans())
def test_unvec_inverts_vec(d, isometric):
    a = torch.randn(2, d, d, dtype=D)
    a = a + a.mT
    v = triu_vector(a, isometric=isometric)
    assert v.shape[1] == triu_size(d) == d * (d + 1) // 2
    assert_close(matrix_from_triu(v, isometric=isometric), a, rtol=1e-14, atol=1e-14)


def test_isometric_vectors_keep_the_frobenius_product():
    a, b = (torch.randn(1, 6, 6, dtype=D) for _ in range(2))
    a, b = a + a.mT, b + b.mT
    dot = (triu_vector(a, isometric=True) * triu_vector(b, isometric=True)).sum()
    assert math.isclose(float(dot), float((a * b).sum()), rel_tol=1e-12)


def test_triu_gradients():
    a = torch.randn(2, 4, 4, dtype=D, requires_grad=True)
    for isometric in (False, True):
        assert gradcheck(lambda a, i=isometric: triu_vector(a, isometric=i), a)
        assert gradgradcheck(lambda a, i=isometric: triu_vector(a, isometric=i), a)
    v = torch.randn(2, 10, dtype=D, requires_grad=True)
    assert gradcheck(matrix_from_triu, v)


BAD = [
    (lambda: covariance(torch.randn(3, 4)), "B, C, H, W"),
    (lambda: covariance(torch.randint(5, (2, 3, 4))), "floating point"),
    (lambda: covariance(torch.randn(2, 3, 0)), "at least one channel and one position"),
    (lambda: covariance(torch.full((2, 3, 4), math.nan)), "must be finite"),
    (lambda: covariance([1, 2]), "given: +list"),
    (lambda: covariance(torch.randn(2, 3, 4), weights=torch.ones(2, 5)), "one per position"),
    (lambda: covariance(torch.randn(2, 3, 4), weights=-torch.ones(2, 4)), "0 or more"),
    (lambda: covariance(torch.randn(2, 3, 4), weights=torch.full((2, 4), torch.nan)), "0 or more"),
    (lambda: covariance(torch.randn(2, 3, 4), weights=[[1.0] * 4] * 2), "argument: weights"),
    (lambda: triu_vector(torch.randn(2, 3, 4)), "square matrices"),
    (lambda: triu_vector(torch.ones(2, 3, 3, dtype=torch.int32)), "floating point"),
    (lambda: matrix_from_triu(torch.randn(2, 5)), "d \\(d \\+ 1\\) / 2"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_one_clear_error(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()


def test_a_call_on_fake_tensors_leaves_nothing_behind():
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        assert triu_vector(torch.empty(2, 23, 23)).shape == (2, 276)
    assert type(triu_vector(torch.eye(23)[None])) is torch.Tensor
