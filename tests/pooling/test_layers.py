import pytest
import torch
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.pooling import (
    ISQRTCOV,
    L2EMG,
    MPNCOV,
    POOLINGS,
    BilinearPooling,
    CompactBilinear,
    DeepO2P,
    G2DeNet,
    GlobalAverage,
    available,
    covariance,
    isqrt_covariance,
    matrix_log,
    matrix_sqrt,
    power_covariance,
    triu_vector,
)

D = torch.float64
NAMES = available()


def build(name, channels=6, **kwargs):
    torch.manual_seed(0)
    if name == "isqrt-cov":
        kwargs.setdefault("dim", None)
    return POOLINGS[name](channels, **kwargs)


def test_every_public_pooling_is_there():
    assert set(NAMES) == {
        "average",
        "bdc",
        "bilinear",
        "compact-bilinear",
        "deep-o2p",
        "dropcov",
        "g2denet",
        "improved-bilinear",
        "isqrt-cov",
        "l2emg",
        "mpn-cov",
        "raid-g",
    }
    assert all(entry.summary for entry in POOLINGS)


def test_published_feature_sizes():
    assert ISQRTCOV(2048).out_features == 32_896
    assert ISQRTCOV(64, 128).out_features == 8_256
    assert ISQRTCOV(512, None).out_features == 131_328
    assert G2DeNet(256).out_features == 33_153
    assert G2DeNet(512).out_features == 131_841
    assert BilinearPooling(512).out_features == 262_144
    assert CompactBilinear(512).out_features == 8_192
    assert GlobalAverage(2048).out_features == 2048


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dim", [None, 4])
@pytest.mark.parametrize("shape", [(3, 6, 4, 5), (3, 6, 20), (1, 6, 1, 1), (0, 6, 4, 4)])
def test_shapes(name, dim, shape):
    layer = build(name, dim=dim).eval()
    out = layer(torch.randn(*shape))
    assert out.shape == (shape[0], layer.out_features)
    assert out.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fill", ["zero", "constant", "one position", "large", "small"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_degenerate_maps_have_finite_outputs_and_gradients(name, fill, dtype):
    layer = build(name)
    x = torch.randn(2, 6, 4, 4)
    x = {
        "zero": x * 0,
        "constant": x * 0 + 0.3,
        "one position": x[:, :, :1, :1],
        "large": x * 1e4,
        "small": x * 1e-6,
    }[fill].to(dtype)
    x.requires_grad_()
    out = layer.to(dtype)(x)
    assert out.dtype == dtype
    out.sum().backward()
    assert out.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("name", [n for n in NAMES if n != "dropcov"])
def test_a_dead_sample_leaves_the_others_as_they_were(name):
    layer = build(name)
    x = torch.randn(4, 6, 4, 4)
    dead = x.clone()
    dead[1] = 0
    assert torch.equal(layer(x)[[0, 2, 3]], layer(dead)[[0, 2, 3]])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "average"])
def test_positions_have_no_order(name):
    layer = build(name).eval().double()
    x = torch.randn(2, 6, 20, dtype=D)
    assert_close(layer(x[:, :, torch.randperm(20)]), layer(x), rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("name", [n for n in NAMES if n not in ("average", "dropcov")])
def test_gradcheck(name):
    layer = build(name, 3, **({"out_features": 8} if name == "compact-bilinear" else {})).double()
    x = torch.randn(2, 3, 7, dtype=D, requires_grad=True)
    assert torch.autograd.gradcheck(layer, x, atol=1e-5)


def test_layers_are_their_functions():
    x = torch.randn(2, 6, 3, 3, dtype=D)
    assert_close(build("isqrt-cov")(x), triu_vector(isqrt_covariance(x)), rtol=1e-12, atol=1e-13)
    assert_close(build("mpn-cov", exponent=0.3)(x), triu_vector(power_covariance(x, exponent=0.3)), rtol=0, atol=0)
    expected = triu_vector(matrix_log(covariance(x, center=False), ridge=0.01))
    assert_close(DeepO2P(6, ridge=0.01)(x), expected, rtol=0, atol=0)
    assert_close(GlobalAverage(6)(x), x.mean((2, 3)), rtol=1e-13, atol=1e-14)
    for normalization, compensate in (("frobenius", True), ("trace", False), ("frobenius", False)):
        layer = ISQRTCOV(6, None, normalization=normalization, compensate=compensate)
        root = matrix_sqrt(covariance(x), normalization=normalization, compensate=compensate)
        assert_close(layer(x), triu_vector(root), rtol=1e-12, atol=1e-13)


def test_mpncov_normalised_variants():
    x = torch.randn(2, 5, 12, dtype=D)
    power = power_covariance(x)
    frobenius = power / power.flatten(1).norm(dim=1)[:, None, None]
    assert_close(MPNCOV(5, normalization="frobenius")(x), triu_vector(frobenius), rtol=1e-12, atol=1e-13)
    spectral = power / torch.linalg.eigvalsh(power)[:, -1, None, None]
    assert_close(MPNCOV(5, normalization="spectral")(x), triu_vector(spectral), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_round_trip(name):
    first, second = build(name, dim=4), build(name, dim=4)
    with torch.no_grad():
        for p in first.parameters():
            p.add_(0.1)
    second.load_state_dict(first.state_dict(), strict=True)
    x = torch.randn(2, 6, 4, 4)
    assert torch.equal(first.eval()(x), second.eval()(x))


@pytest.mark.parametrize("name", NAMES)
def test_autocast_stays_close_to_single_precision(name):
    layer = build(name).eval()
    x = torch.randn(2, 6, 5, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = layer(x)
    assert_close(inside.float(), layer(x), rtol=1e-5, atol=1e-5)


BAD = [
    (lambda layer: layer(torch.randn(2, 5, 3, 3)), "channels this layer was built for"),
    (lambda layer: layer(torch.randn(6, 3)), "B, C, H, W"),
    (lambda layer: layer(torch.ones(2, 6, 3, 3, dtype=torch.uint8)), "floating point"),
    (lambda layer: layer(torch.full((2, 6, 3, 3), float("nan"))), "must be finite"),
    (lambda layer: layer(torch.randn(2, 6, 0, 3)), "one channel and one position"),
    (lambda layer: type(layer)(0), "at least 1"),
    (lambda layer: type(layer)(6, dim=0), "at least 1"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_one_clear_error(name, call, words):
    layer = build(name)
    with pytest.raises(InvalidArgument, match=words):
        call(layer)


def test_bad_settings():
    for call, words in (
        (lambda: ISQRTCOV(6, iterations=0), "at least 1"),
        (lambda: ISQRTCOV(6, iterations=1001, method="polar-express"), "at most 1000"),
        (lambda: BilinearPooling(6, root="newton-schulz", iterations=1001), "at most 1000"),
        (lambda: G2DeNet(6, method="newton-schulz", iterations=1001), "at most 1000"),
        (lambda: ISQRTCOV(6, normalization="max"), "one of 'trace'"),
        (lambda: ISQRTCOV(6, side="positions", compensate=False), "side can be forced"),
        (lambda: MPNCOV(6, exponent=0.0), "exponent must be a finite number above 0"),
        (lambda: MPNCOV(6, normalization="trace"), "one of None"),
        (lambda: DeepO2P(6, ridge=-1.0), "ridge must be a finite number above 0"),
        (lambda: G2DeNet(6, method="lu"), "method has no such choice"),
        (lambda: BilinearPooling(6, root="lu"), "one of None"),
        (lambda: L2EMG(9, mode="de")(1e8 * torch.randn(1, 9, 2, 2)), "ridge is lost"),
        (lambda: POOLINGS["isqrt"], "did you mean 'isqrt-cov'"),
    ):
        with pytest.raises(InvalidArgument, match=words):
            call()
