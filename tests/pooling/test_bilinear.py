import pytest
import torch
from torch.testing import assert_close

from convsmith.pooling import BilinearPooling, CompactBilinear, ImprovedBilinear, covariance, matrix_sqrt
from convsmith.pooling.bilinear import signed_sqrt, tensor_sketch

D = torch.float64


def test_bcnn_step_by_step():
    x = torch.randn(2, 4, 3, 3, dtype=D)
    flat = x.flatten(2)
    expected = []
    for s in flat:
        moment = sum(torch.outer(s[:, k], s[:, k]) for k in range(9)) / 9
        v = torch.sign(moment) * torch.sqrt(moment.abs() + 1e-8)
        expected.append((v / v.norm()).flatten())
    assert_close(BilinearPooling(4)(x), torch.stack(expected), rtol=1e-12, atol=1e-13)


def test_improved_bcnn_takes_the_root_first():
    x = torch.randn(2, 4, 9, dtype=D)
    root = matrix_sqrt(covariance(x, center=False), iterations=10).flatten(1)
    v = signed_sqrt(root)
    assert_close(ImprovedBilinear(4)(x), v / v.norm(dim=1, keepdim=True), rtol=1e-12, atol=1e-13)
    exact = BilinearPooling(4, root="eigh")(x)
    assert_close(BilinearPooling(4, root="polar-express", iterations=8)(x), exact, rtol=1e-6, atol=1e-7)


def fft_sketch(x, layer):
    """CVPR 2016, algorithm 2: two count sketches per position, multiplied in the frequency domain, summed."""
    random = torch.Generator().manual_seed(0)
    h = torch.randint(layer.out_features, (2, layer.dim), generator=random)
    s = (torch.randint(2, (2, layer.dim), generator=random) * 2 - 1).double()
    out = []
    for sample in x.flatten(2):
        total = torch.zeros(layer.out_features, dtype=D)
        for k in range(sample.shape[1]):
            sketches = []
            for i in range(2):
                psi = torch.zeros(layer.out_features, dtype=D)
                for c in range(layer.dim):
                    psi[h[i, c]] += s[i, c] * sample[c, k]
                sketches.append(torch.fft.rfft(psi))
            total += torch.fft.irfft(sketches[0] * sketches[1], n=layer.out_features)
        out.append(total / sample.shape[1])
    return torch.stack(out)


def test_the_sketch_without_fft_equals_the_published_one_with():
    layer = CompactBilinear(5, 32)
    x = torch.randn(2, 5, 2, 3, dtype=D)
    ours = tensor_sketch(covariance(x, center=False), layer.target, layer.sign, 32)
    assert_close(ours, fft_sketch(x, layer), rtol=1e-11, atol=1e-12)


def test_the_sketch_is_an_unbiased_kernel():
    x, y = torch.randn(8, 1, dtype=D), torch.randn(8, 1, dtype=D)
    x, y = x / x.norm(), y / y.norm()
    exact = float((x * y).sum() ** 2)
    values = []
    for seed in range(400):
        layer = CompactBilinear(8, 128, seed=seed)
        a, b = (tensor_sketch(covariance(v[None], center=False), layer.target, layer.sign, 128) for v in (x, y))
        values.append(float((a * b).sum()))
    values = torch.tensor(values)
    assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / 20


def test_the_constructor_leaves_the_global_generator_alone_and_obeys_its_seed():
    before = torch.random.get_rng_state()
    a, b, c = CompactBilinear(6, 64), CompactBilinear(6, 64), CompactBilinear(6, 64, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    assert torch.equal(a.target, b.target)
    assert not torch.equal(a.target, c.target)


def test_hash_and_signs_travel_in_the_state_dict():
    a, b = CompactBilinear(6, 64), CompactBilinear(6, 64, seed=1)
    assert set(a.state_dict()) == {"target", "sign"}
    b.load_state_dict(a.state_dict())
    x = torch.randn(2, 6, 3, 3)
    assert torch.equal(a(x), b(x))


@pytest.mark.parametrize("value", [0.0, 4.0, -9.0])
def test_signed_sqrt(value):
    x = torch.tensor(value, dtype=D)
    expected = (x.abs() + 1e-8).sqrt() * x.sign()
    assert signed_sqrt(x) == expected
