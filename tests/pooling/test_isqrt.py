import warnings

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given
from torch.autograd import gradcheck, gradgradcheck
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.pooling import isqrt, isqrt_covariance
from convsmith.pooling.isqrt import prefers_positions

D = torch.float64


def naive_isqrt(x, n):
    """CVPR 2018, section 3: centring matrix, trace, coupled iteration, compensation; one sample at a time."""
    out = []
    for s in x.flatten(2):
        m = s.shape[1]
        centring = (torch.eye(m, dtype=x.dtype) - torch.ones(m, m, dtype=x.dtype) / m) / m
        sigma = s @ centring @ s.T
        trace = torch.trace(sigma)
        y, z = sigma / trace, torch.eye(len(s), dtype=x.dtype)
        for _ in range(n):
            t = 0.5 * (3 * torch.eye(len(s), dtype=x.dtype) - z @ y)
            y, z = y @ t, t @ z
        out.append(trace.sqrt() * y)
    return torch.stack(out)


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7])
@pytest.mark.parametrize("m", [2, 5, 6, 7, 18])
@pytest.mark.parametrize("keep", [True, False, None])
@pytest.mark.parametrize("side", ["channels", "positions", "auto"])
def test_output_and_gradient_equal_the_published_algorithm_on_either_side(n, m, keep, side, monkeypatch):
    if keep is not None:
        monkeypatch.setattr(isqrt, "worth_keeping", lambda *_: keep)
    x = torch.randn(3, 6, m, dtype=D, requires_grad=True)
    g = torch.randn(3, 6, 6, dtype=D)
    expected = naive_isqrt(x, n)
    out = isqrt_covariance(x, iterations=n, side=side)
    assert_close(out, expected, rtol=0, atol=1e-12)
    (ours,) = torch.autograd.grad(out, x, g)
    (naive,) = torch.autograd.grad(expected, x, g)
    assert_close(ours, naive, rtol=0, atol=1e-12 * max(1.0, float(naive.abs().max())))


@given(b=st.integers(0, 3), c=st.integers(1, 6), h=st.integers(1, 4), w=st.integers(1, 4), n=st.integers(1, 6))
def test_sides_agree_for_any_shape(b, c, h, w, n):
    x = torch.randn(b, c, h, w, dtype=D)
    assert_close(
        isqrt_covariance(x, iterations=n, side="channels"),
        isqrt_covariance(x, iterations=n, side="positions"),
        rtol=0,
        atol=1e-12,
    )


@pytest.mark.parametrize("n", [1, 2, 3, 5])
@pytest.mark.parametrize("side", ["channels", "positions"])
@pytest.mark.parametrize("keep", [True, False])
def test_gradcheck_and_gradgradcheck(n, side, keep, monkeypatch):
    monkeypatch.setattr(isqrt, "worth_keeping", lambda *_: keep)
    x = torch.randn(2, 4, 5, dtype=D, requires_grad=True)

    def f(x):
        return isqrt_covariance(x, iterations=n, side=side)

    assert gradcheck(f, x)
    assert gradgradcheck(f, x)


@pytest.mark.parametrize("size", [(256, 196), (256, 49), (160, 300)])
def test_single_precision_at_full_size_with_the_mirrored_blocks(size):
    c, m = size
    x = torch.randn(2, c, m).relu().requires_grad_()
    g = torch.randn(2, c, c)
    out = isqrt_covariance(x)
    reference_x = x.detach().double().requires_grad_()
    reference = naive_isqrt(reference_x, 5)
    reference.backward(g.double())
    out.backward(g)
    bound = max(c, m) * torch.finfo(torch.float32).eps  # sums of so many products; of what order is the machine's own
    assert (out.double() - reference).norm() / reference.norm() < bound
    assert (x.grad.double() - reference_x.grad).norm() / reference_x.grad.norm() < 2 * bound


@pytest.mark.parametrize("side", ["channels", "positions"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("fill", ["zero", "constant", "one position", "tiny"])
def test_degenerate_maps_give_zero_and_a_zero_gradient(side, dtype, fill):
    x = torch.zeros(2, 8, 25, dtype=dtype)
    if fill == "constant":
        x += torch.randn(2, 8, 1).to(dtype)
    elif fill == "one position":
        x = torch.randn(2, 8, 1).to(dtype)
    elif fill == "tiny":
        x += torch.randn(2, 8, 25).to(dtype) * 1e-30
    x.requires_grad_()
    out = isqrt_covariance(x, side=side)
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()
    if fill != "tiny":
        assert out.abs().max() == 0
        assert x.grad.abs().max() == 0


@pytest.mark.parametrize("side", ["channels", "positions"])
@pytest.mark.parametrize("size", [(12, 9), (12, 30), (256, 49), (256, 196)])
def test_a_dead_sample_leaves_the_others_bit_identical(side, size):
    x = torch.randn(4, *size)
    g = torch.randn(4, size[0], size[0])
    dead = x.clone()
    dead[2] = 0
    results = []
    for value in (x, dead):
        value = value.clone().requires_grad_()
        out = isqrt_covariance(value, side=side)
        out.backward(g)
        results.append((out.detach(), value.grad))
    for i in (0, 1, 3):
        assert torch.equal(results[0][0][i], results[1][0][i])
        assert torch.equal(results[0][1][i], results[1][1][i])
        alone = x[i : i + 1].clone().requires_grad_()
        out = isqrt_covariance(alone, side=side)
        out.backward(g[i : i + 1])
        if size[0] == 256 and torch.get_num_threads() == 1:
            assert torch.equal(out.detach()[0], results[1][0][i])
            assert torch.equal(alone.grad[0], results[1][1][i])
        else:
            # tiny matrices in a batch take another kernel than a single one, and one product alone is divided among
            # threads where a batch is shared out whole: rounding may differ, no more
            assert_close(out.detach()[0], results[1][0][i], rtol=1e-5, atol=1e-5)
            assert_close(alone.grad[0], results[1][1][i], rtol=1e-4, atol=1e-4)


def test_scale_of_the_features_passes_through():
    x = torch.randn(2, 5, 9, dtype=D)
    assert_close(isqrt_covariance(1e3 * x), 1e3 * isqrt_covariance(x), rtol=1e-12, atol=1e-12)


def saved_bytes(function):
    seen = {}

    def pack(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function()
    return sum(seen.values())


@pytest.mark.parametrize("side", [7, 14, 16, 28])
def test_at_most_half_of_the_published_memory_is_saved(side):
    d, m, n = 256, side * side, 5
    x = torch.randn(1, d, side, side, requires_grad=True)
    # X, the centring matrix, Sigma, A, the last factor, and Y and Z of every step
    published = 4 * (d * m + m * m + (2 * n + 3) * d * d)
    assert saved_bytes(lambda: isqrt_covariance(x)) <= published / 2


def test_auto_takes_positions_for_small_maps_only():
    assert prefers_positions(256, 49, 3)
    assert prefers_positions(256, 196, 3)
    assert not prefers_positions(256, 784, 3)


@pytest.mark.parametrize(("d", "m"), [(256, 240), (256, 255), (64, 60), (64, 63), (128, 121)])
def test_auto_is_as_exact_as_the_plain_recurrence_on_nearly_square_maps(d, m):
    """Regression: positions, fourteen times the rounding for the same time."""
    x = torch.randn(2, d, m).relu()
    truth = naive_isqrt(x.double(), 5)
    ours, plain = ((out.double() - truth).norm() for out in (isqrt_covariance(x), naive_isqrt(x, 5)))
    assert not prefers_positions(d, m, 3)
    assert ours < 4 * plain


def test_autocast_changes_nothing_forward_or_backward():
    x = torch.randn(2, 16, 5, 5)
    results = []
    for enabled in (False, True):
        value = x.clone().requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            out = isqrt_covariance(value)
            out.sum().backward()
        results.append((out.detach(), value.grad))
    assert results[1][0].dtype == torch.float32
    assert_close(results[0], results[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_only_the_result(dtype):
    x = torch.randn(2, 16, 30).to(dtype)
    assert torch.equal(isqrt_covariance(x), isqrt_covariance(x.float()).to(dtype))


def test_vmap_jacrev_and_hessian():
    x = torch.randn(3, 2, 4, 6, dtype=D)
    mapped = torch.func.vmap(isqrt_covariance)(x)
    assert_close(mapped, torch.stack([isqrt_covariance(v) for v in x]), rtol=1e-13, atol=1e-14)
    jacobian = torch.func.jacrev(isqrt_covariance)(x[0])
    expected = torch.autograd.functional.jacobian(isqrt_covariance, x[0])
    assert_close(jacobian, expected, rtol=1e-11, atol=1e-12)
    per_sample = torch.func.vmap(torch.func.grad(lambda v: isqrt_covariance(v[None]).square().sum()))(x[0])
    whole = x[0].clone().requires_grad_()
    isqrt_covariance(whole).square().sum().backward()
    assert_close(per_sample, whole.grad, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(2, 16, 3, 3), (2, 8, 6, 6)])
def test_compiled_in_one_graph_equals_eager(shape):
    x = torch.randn(*shape)
    compiled = torch.compile(isqrt_covariance, fullgraph=True, backend="aot_eager")
    results = []
    for f in (isqrt_covariance, compiled):
        value = x.clone().requires_grad_()
        out = f(value)
        out.square().sum().backward()
        results.append((out.detach(), value.grad))
    assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_strided_views_are_fine():
    x = torch.randn(2, 5, 6, 4, dtype=D)
    assert_close(isqrt_covariance(x.mT), isqrt_covariance(x.mT.contiguous()), rtol=1e-13, atol=1e-14)
    channels_last = x.to(memory_format=torch.channels_last)
    assert_close(isqrt_covariance(channels_last), isqrt_covariance(x), rtol=1e-13, atol=1e-14)


def test_too_many_iterations_warn():
    x = torch.randn(1, 4, 9)
    with pytest.warns(RuntimeWarning, match="21 Newton-Schulz iterations in float32"):
        isqrt_covariance(x, iterations=21)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        isqrt_covariance(x.double(), iterations=21)


BAD = [
    (lambda: isqrt_covariance(torch.randn(3, 4)), "B, C, H, W"),
    (lambda: isqrt_covariance(torch.ones(2, 3, 4, dtype=torch.int64)), "floating point"),
    (lambda: isqrt_covariance(torch.randn(2, 3, 0, 4)), "at least one channel and one position"),
    (lambda: isqrt_covariance(torch.full((2, 3, 4), float("nan"))), "NaN or infinity in sample 0, 1 of 2"),
    (lambda: isqrt_covariance(torch.randn(2, 3, 4), iterations=0), "at least 1"),
    (lambda: isqrt_covariance(torch.randn(2, 3, 4), side="left"), "side has no such choice"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_one_clear_error(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()


def test_groups_of_samples_change_nothing(monkeypatch):
    x = torch.randn(6, 130, 12, 12, generator=torch.Generator().manual_seed(3)).relu()
    g = torch.randn(6, 130, 130, generator=torch.Generator().manual_seed(4))
    assert len(x) > isqrt.CPU_CHUNK
    found = []
    for group in (isqrt.CPU_CHUNK, 100):
        monkeypatch.setattr(isqrt, "CPU_CHUNK", group)
        leaf = x.clone().requires_grad_()
        out = isqrt_covariance(leaf)
        (first,) = torch.autograd.grad(out, leaf, g, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), leaf)
        found.append((out.detach(), first.detach(), second))
    for grouped, whole in zip(*found, strict=True):
        scale = float(whole.abs().max())
        assert_close(grouped / scale, whole / scale, rtol=0, atol=2e-5)
    monkeypatch.setattr(isqrt, "CPU_CHUNK", 4)
    dead = x.clone()
    dead[2] = 0
    dead.requires_grad_()
    out = isqrt_covariance(dead)
    out.backward(g)
    for i in (0, 1, 3, 4, 5):
        assert_close(out[i].detach(), found[0][0][i], rtol=0, atol=0)
    assert torch.equal(dead.grad[2], torch.zeros_like(dead.grad[2]))
