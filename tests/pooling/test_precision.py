"""Single precision against formulas in float64, on the smallest inputs that once were wrong."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.pooling import (
    BDC,
    ISQRTCOV,
    L2EMG,
    MPNCOV,
    POOLINGS,
    RAIDG,
    BilinearPooling,
    CompactBilinear,
    DeepO2P,
    ImprovedBilinear,
    covariance,
    isqrt_covariance,
    matrix_log,
    matrix_power,
    matrix_sqrt,
    von_neumann_estimate,
)

D = torch.float64


def relative(found, exact):
    return float((found.detach().double() - exact).norm() / exact.norm())


def upper(a):
    return a[np.triu_indices(len(a))]


def function(a, f):
    values, vectors = np.linalg.eigh(a)
    return vectors @ np.diag(f(values)) @ vectors.T


def embedding(x, ridge):
    """The Gaussian of features [C, M] in one matrix."""
    mean = x.mean(1)
    sigma = np.cov(x, bias=True) + ridge * np.eye(len(x))
    return np.block([[sigma + np.outer(mean, mean), mean[:, None]], [mean[None], np.ones((1, 1))]])


def features(*shape, offset=0.0, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) + offset


@pytest.mark.parametrize("offset", [None, 10.0])
def test_l2emg_in_single_precision(offset):
    x = features(2, 256, 7, 7).relu() if offset is None else features(2, 24, 7, 7, offset=offset)
    layer = L2EMG(x.shape[1])
    exact = [0.5 * function(embedding(s.double().flatten(1).numpy(), 1e-3), np.log) for s in x]
    assert relative(layer(x), torch.tensor(np.stack([upper(e) for e in exact]))) < 1e-5
    single, double = x.clone().requires_grad_(), x.double().requires_grad_()
    layer(single).square().sum().backward()
    layer(double).square().sum().backward()
    assert relative(single.grad, double.grad) < 1e-4


@pytest.mark.parametrize("ridge", [1e-3, 1e-6, 1e-9])
def test_a_logarithm_with_a_small_ridge(ridge):
    x = features(1, 32, 3, 3)
    second = np.einsum("cm,dm->cd", *[x[0].double().flatten(1).numpy()] * 2) / 9
    exact = function(second + ridge * np.eye(32), np.log)
    assert relative(DeepO2P(32, ridge=ridge)(x)[0], torch.tensor(upper(exact))) < 1e-5


def test_the_logarithm_of_a_wide_spectrum():
    a = torch.diag(torch.tensor([1e4, 1.0, 1e-3]))
    assert_close(matrix_log(a, ridge=1e-12), torch.diag(a.diagonal().log()), rtol=1e-6, atol=1e-6)


def test_features_far_from_zero():
    x = features(1, 8, 6, 6, offset=100.0)
    wide = x[0].double().flatten(1).numpy()
    exact = function(wide @ wide.T / 36 + 1e-3 * np.eye(8), np.log)
    assert relative(DeepO2P(8)(x)[0], torch.tensor(upper(exact))) < 1e-5


@pytest.mark.parametrize("common", [True, False])
def test_distances_between_channels_far_from_zero(common):
    x = 0.01 * features(1, 16, 7, 7) + (10.0 if common else torch.tensor([10.0, 0.0]).repeat(8)[None, :, None, None])
    wide = x[0].double().flatten(1).numpy()
    squared = ((wide[:, None] - wide[None]) ** 2).sum(2) / (2 * 49)
    distance = np.sqrt(squared + 1e-5)
    exact = distance - distance.mean(0) - distance.mean(1)[:, None] + distance.mean()
    assert relative(BDC(16)(x)[0], torch.tensor(upper(exact))) < 1e-5


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("steps", [7, 8, 10, 12, 20])
def test_minimax_steps_on_a_singular_covariance(dtype, steps):
    a = covariance(features(2, 64, 16)).to(dtype)
    exact = torch.tensor(np.stack([function(m.double().numpy(), lambda v: np.sqrt(v.clip(0))) for m in a]))
    # the null space of a rounded matrix is known to the root of its rounding
    bound = 4 * torch.finfo(dtype).eps ** 0.5
    assert relative(matrix_sqrt(a, method="polar-express", iterations=steps), exact) < bound


def test_minimax_gradients_on_a_singular_covariance_are_finite_and_close():
    x = features(2, 64, 16)
    gradients = []
    for method, wide in (("polar-express", x), ("eigh", x.double())):
        leaf = wide.clone().requires_grad_()
        matrix_sqrt(covariance(leaf), method=method, iterations=10).square().sum().backward()
        gradients.append(leaf.grad)
    assert relative(*gradients) < 1e-2


def test_a_zero_map_in_half_precision():
    layer = CompactBilinear(8, 64).half()
    x = torch.zeros(2, 8, 3, 3, dtype=torch.float16, requires_grad=True)
    out = layer(x)
    out.sum().backward()
    assert out.dtype == torch.float16
    assert out.abs().max() == 0
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("root", ["eigh", "newton-schulz"])
def test_what_is_exactly_zero_stays_zero(root):
    x = features(1, 6, 5, 5)
    x[:, 2] = 0.0
    out = ImprovedBilinear(6, root=root)(x).view(6, 6)
    assert out[2].abs().max() < 1e-9
    assert out[:, 2].abs().max() < 1e-9


def shifted(values, theta, c):
    return np.sqrt(c * c + values.clip(0) / theta) - c


def test_the_von_neumann_estimate_has_no_negative_eigenvalue():
    a = covariance(features(2, 40, 9))
    for theta in (0.3, 0.75, 1.0, 3.0):
        found = von_neumann_estimate(a.double(), theta)
        c = (1 - theta) / (2 * theta)
        exact = [function(m.double().numpy(), partial(shifted, theta=theta, c=c)) for m in a]
        assert_close(found, torch.tensor(np.stack(exact)), rtol=1e-9, atol=1e-9)
        assert torch.linalg.eigvalsh(found).amin() > -1e-15


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_sizes_whose_squares_leave_single_precision(size):
    x = features(2, 6, 4, 4) * size
    bilinear = (BilinearPooling(6), ImprovedBilinear(6), CompactBilinear(6, 32)) if size > 1 else ()
    for layer in (ISQRTCOV(6, dim=None), MPNCOV(6), *bilinear):
        assert relative(layer(x), layer.double()(x.double()).detach()) < 1e-4, layer
    assert relative(isqrt_covariance(x), isqrt_covariance(x.double())) < 1e-4
    for layer in (L2EMG(6), RAIDG(6), DeepO2P(6), *((BDC(6),) if size > 1 else ())):
        assert relative(layer(x), layer.double()(x.double()).detach()) < 1e-4, layer


@pytest.mark.parametrize(
    "call",
    [
        lambda: covariance(features(1, 3, 4) * 1e30),
        lambda: MPNCOV(3, exponent=2.0)(features(1, 3, 4) * 1e12),
        lambda: DeepO2P(3).half() and covariance((300 + features(1, 3, 4)).half(), center=False),
        lambda: matrix_power(torch.eye(3).half() * 1e3, 2.0),
    ],
)
def test_what_cannot_be_held_is_said(call):
    with pytest.raises(InvalidArgument, match=r"not finite in float(32|16)"):
        call()


@pytest.mark.parametrize("size", [1e-24, 1e24])
def test_the_frobenius_norm_of_small_and_large_matrices(size):
    a = covariance(features(2, 4, 9)) * size
    assert (
        relative(matrix_sqrt(a, normalization="frobenius"), matrix_sqrt(a.double(), normalization="frobenius")) < 1e-6
    )


@pytest.mark.parametrize("positions", [4, 25])
def test_l2emg_far_from_zero_keeps_its_small_eigenvalues(positions):
    # the embedding's eigenvalues are 1e-10 and 1e7, closer than double precision holds; scaled by 2^k its own do not
    from mpmath import matrix, mp

    with mp.workdps(60):
        x = features(1, 3, positions, offset=1e3, seed=4).double()
        y = torch.cat([torch.cat([x[0], torch.ones(1, positions, dtype=D)]) * positions**-0.5], 1).tolist()
        block = matrix(y) * matrix(y).T
        for i in range(3):
            block[i, i] += mp.mpf(1e-3)
        values, vectors = mp.eigsy(block)
        log = vectors * mp.diag([mp.log(v) / 2 for v in values]) * vectors.T
        exact = torch.tensor([[float(log[i, j]) for j in range(4)] for i in range(4)], dtype=D)
    found = L2EMG(3).double()(x)[0]
    assert relative(found, exact[np.triu_indices(4)]) < 1e-8


def test_arguments_by_their_documented_names():
    a = covariance(x=features(2, 4, 9))
    assert_close(matrix_sqrt(a=a), matrix_sqrt(a))
    assert_close(matrix_power(a=a, exponent=0.5), matrix_power(a, 0.5))
    assert_close(matrix_log(a=a), matrix_log(a))
    assert_close(von_neumann_estimate(s=a, theta=0.5), von_neumann_estimate(a, 0.5))
    assert_close(isqrt_covariance(x=features(2, 4, 9)), isqrt_covariance(features(2, 4, 9)))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'a'"):
        matrix_log()


NAMES = [entry.name for entry in POOLINGS]


def made(name, dtype=torch.float32):
    torch.manual_seed(0)
    arguments = (5, 32) if name == "compact-bilinear" else (5, None)
    return POOLINGS[name](*arguments).to(dtype).eval()


@pytest.mark.parametrize("name", NAMES)
def test_double_precision_stays(name):
    x = features(3, 5, 4, 4)
    layer = made(name)
    found = made(name, D)(x.double())
    assert found.dtype == D
    assert relative(layer(x), found.detach()) < 1e-5
    assert not torch.equal(found, found.float().double())


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("positions", [9, 3])
def test_forward_mode_is_the_derivative(name, positions):
    layer = made(name, D)
    x, t = features(2, 5, positions, 1).double(), features(2, 5, positions, 1, seed=1).double()
    out, tangent = torch.func.jvp(layer, (x,), (t,))
    assert_close(out, layer(x), rtol=1e-12, atol=1e-13)
    # the same number from the backward pass: <g, J t> = <J^T g, t>
    g = torch.randn(out.shape, dtype=D, generator=torch.Generator().manual_seed(2))
    _, pulled = torch.func.vjp(layer, x)
    assert_close((g * tangent).sum(), (pulled(g)[0] * t).sum(), rtol=1e-8, atol=1e-10)
    step = 1e-6
    difference = (layer(x + step * t) - layer(x - step * t)) / (2 * step)
    if positions > 5:
        # with fewer positions than channels the root is not differentiable in every direction
        assert_close(tangent, difference, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["mpn-cov", "g2denet", "deep-o2p", "l2emg", "raid-g"])
def test_compiled_code_breaks_its_graph_at_eigenvalues(name):
    layer = made(name, D)
    x = features(2, 5, 3, 3).double().requires_grad_()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        compiled = torch.compile(layer, backend="aot_eager")
        out = compiled(x)
    assert_close(out, layer(x), rtol=1e-10, atol=1e-11)
    (found,) = torch.autograd.grad(out.square().sum(), x)
    (wanted,) = torch.autograd.grad(layer(x).square().sum(), x)
    assert_close(found, wanted, rtol=1e-8, atol=1e-9)
