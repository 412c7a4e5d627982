"""All backends give the numbers of a plain sum over weights, in output and gradient; the choice is measured once."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from convsmith.compression import InterleavedGroupConv2d, InterleavedStructuredConv2d, composite_kernel, cost
from convsmith.compression.operators import backends, buffers, onednn, pieces
from convsmith.errors import InvalidArgument

LAYOUTS = [torch.contiguous_format, torch.channels_last]
DIFFERENTIABLE = ["group", "matmul", "dense", "auto"]
CHAINS = {
    "pair": lambda **k: InterleavedGroupConv2d(4, 3, 1, **k),
    "spatial pair": lambda **k: InterleavedGroupConv2d(4, 3, 3, 2, **k),
    "widening pair": lambda **k: InterleavedGroupConv2d(4, 2, 3, out_primary=3, out_members=4, **k),
    "merged secondary": lambda **k: InterleavedGroupConv2d(4, 2, 3, out_members=4, secondary_groups=2, **k),
    "three digits": lambda **k: InterleavedStructuredConv2d((2, 3, 2), 1, **k),
    "depthwise and three": lambda **k: InterleavedStructuredConv2d((1, 2, 3, 2), 3, out_partitions=(1, 3, 2, 2), **k),
    "loose": lambda **k: InterleavedStructuredConv2d((4, 4), 3, channels=12, **k),
}
#: rtol = atol by dtype: one rounding a factor, sums of at most 100 terms
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 4e-2, torch.float16: 5e-3}


def naive(x, layer):
    """Multiply out the definition in float64: one dense convolution."""
    g = layer.geometry
    return F.conv2d(x.double(), composite_kernel(layer.double()), None, g.stride, g.padding, g.dilation)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("backend", DIFFERENTIABLE)
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_output_and_gradients(name, backend, layout, dtype):
    layer = CHAINS[name](dtype=dtype, backend=backend)
    x = torch.randn(3, layer.in_channels, 5, 4, dtype=dtype).contiguous(memory_format=layout).requires_grad_()
    y = layer(x)
    upstream = torch.randn_like(y)
    gradients = torch.autograd.grad(y, [x, *layer.weights], upstream)
    twin = CHAINS[name](dtype=torch.float64)
    twin.load_state_dict(layer.state_dict())
    x64 = x.detach().double().requires_grad_()
    expected = naive(x64, twin)
    expected_gradients = torch.autograd.grad(expected, [x64, *twin.weights], upstream.double())
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype] * 10}
    torch.testing.assert_close(y.double(), expected, **close)
    for ours, theirs in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(ours.double(), theirs, **close)


@pytest.mark.parametrize("backend", ["group", "matmul", "dense"])
@pytest.mark.parametrize("name", ["widening pair", "three digits", "loose"])
def test_gradcheck(name, backend):
    layer = CHAINS[name](dtype=torch.float64, backend=backend)
    x = torch.randn(2, layer.in_channels, 3, 2, dtype=torch.float64, requires_grad=True)

    def run(x, *weights):
        return torch.func.functional_call(layer, {f"weights.{i}": w for i, w in enumerate(weights)}, (x,))

    assert torch.autograd.gradcheck(run, (x, *layer.weights))


def test_second_derivatives_of_the_view_products():
    layer = CHAINS["three digits"](dtype=torch.float64, backend="matmul")
    x = torch.randn(2, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(layer, (x,))


@pytest.mark.parametrize("backend", ["packed", "packed-pieces", "packed-dense"])
@pytest.mark.parametrize("name", CHAINS)
@pytest.mark.parametrize("batch", [1, 5])
def test_packed_convolutions(name, backend, batch, monkeypatch):
    if not onednn.packing_works():
        pytest.skip("this build of torch has no oneDNN convolution")
    monkeypatch.setattr(pieces, "PIECE_BYTES", 12 * 20 * 4)  # two images a piece
    layer = CHAINS[name](backend=backend)
    x = torch.randn(batch, layer.in_channels, 5, 4).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = layer(x)
        layer.backend = "group"
        torch.testing.assert_close(y, layer(x), rtol=1e-5, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("backend", ["dense", "packed", "packed-dense"])
@pytest.mark.parametrize("change", ["in place", "replaced", "optimizer"])
def test_kept_kernels_follow_the_weights(backend, change):
    layer = InterleavedGroupConv2d(4, 2, backend=backend)
    x = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        before = layer(x)
        if change == "in place":
            layer.weights[1].mul_(2.0)
        elif change == "replaced":
            layer.weights[1].data = layer.weights[1].data * 2.0
        else:
            layer.weights[1].grad = -layer.weights[1].detach()
            torch.optim.SGD([layer.weights[1]], lr=1.0).step()
        torch.testing.assert_close(layer(x), 2 * before, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", ["group", "matmul", "dense"])
def test_half_precision(dtype, backend):
    layer = InterleavedGroupConv2d(4, 3, backend=backend)
    x = torch.randn(2, 12, 6, 6)
    expected = layer(x).detach()
    y = layer.to(dtype)(x.to(dtype))
    assert y.dtype == dtype
    torch.testing.assert_close(y.float(), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * 4)


@pytest.mark.parametrize("backend", DIFFERENTIABLE)
def test_autocast(backend):
    layer = InterleavedGroupConv2d(4, 3, backend=backend)
    x = torch.randn(2, 12, 6, 6)
    expected = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
        y.float().sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(w.grad.dtype == torch.float32 for w in layer.weights)
    torch.testing.assert_close(y.float(), expected, rtol=4e-2, atol=0.15)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 3), st.integers(1, 5), st.integers(1, 5))
def test_backends_agree_on_any_shape(primary, members, batch, height, width):
    layer = InterleavedGroupConv2d(primary, members, 1, dtype=torch.float64)
    x = torch.randn(batch, primary * members, height, width, dtype=torch.float64)
    outputs = []
    for backend in ("group", "matmul", "dense"):
        layer.backend = backend
        outputs.append(layer(x))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(outputs[2], outputs[0], rtol=1e-12, atol=1e-12)


def test_the_choice_is_measured_once_and_kept(monkeypatch):
    backends.forget_choices()
    measured = []
    original = backends.measure

    def spy(x, chain):
        measured.append(tuple(x.shape))
        return original(x, chain)

    monkeypatch.setattr(backends, "measure", spy)
    layer = InterleavedGroupConv2d(4, 2)
    with torch.no_grad():
        for size in (4, 4, 5, 4):
            layer(torch.randn(1, 8, size, size))
    assert measured == [(1, 8, 4, 4), (1, 8, 5, 5)]
    layer(torch.randn(1, 8, 4, 4))  # with gradients it is another question
    assert len(measured) == 3
    assert set(backends.choices().values()) <= set(backends.BACKENDS)


def test_the_choice_takes_the_fastest(monkeypatch):
    backends.forget_choices()
    times = {"group": 3.0, "matmul": 2.0, "dense": 1.0}
    monkeypatch.setattr(backends, "measure", lambda x, chain: times)
    called = []
    monkeypatch.setitem(backends.BACKENDS, "dense", lambda x, chain: called.append("dense") or x)
    InterleavedGroupConv2d(4, 2)(torch.randn(1, 8, 4, 4))
    assert called == ["dense"]
    backends.forget_choices()


@pytest.mark.parametrize(
    ("times", "chosen"),
    [
        ({"group": 1.0, "dense": 1.04}, "dense"),  # within the margin: the layer it replaces
        ({"group": 1.0, "dense": 1.06}, "group"),
        ({"group": 0.9, "matmul": 0.8, "dense": 1.0}, "matmul"),
        ({"group": 2.0, "dense": 1.0}, "dense"),
    ],
)
def test_the_dense_layer_stays_unless_clearly_beaten(times, chosen):
    assert backends.choose(times) == chosen


def test_an_unsteady_candidate_counts_by_its_worse_half(monkeypatch):
    calls = []

    def run(name, seconds):
        def backend(x, chain):
            clock[0] += seconds[len(calls) % len(seconds)]
            calls.append(name)
            return x

        return backend

    clock = [0.0]
    monkeypatch.setattr(backends, "_now", lambda device: clock[0])
    monkeypatch.setattr(backends, "candidates", lambda x, chain: ("group", "dense"))
    for name, seconds in (
        ("group", [1.0, 9.0, 9.0, 9.0]),
        ("dense", [4.0, 4.0, 4.0, 2.0]),
    ):  # every fourth call differs
        monkeypatch.setitem(backends.BACKENDS, name, run(name, seconds))
    with torch.no_grad():
        found = backends.measure(torch.randn(1, 8, 4, 4), InterleavedGroupConv2d(4, 2, 1), rounds=8, limit=1e9)
    assert len(calls) == 2 * (2 + 8)
    assert found == {"group": 9.0, "dense": 2.0}


def test_every_candidate_is_measured_forward_and_backward():
    layer = InterleavedGroupConv2d(4, 2)
    x = torch.randn(1, 8, 4, 4)
    assert set(backends.measure(x, layer)) == {"group", "matmul", "dense"}
    with torch.no_grad():
        assert set(backends.measure(x, layer)) == {"group", "matmul", "matmul-pieces", "dense"}
        times = backends.measure(x.contiguous(memory_format=torch.channels_last), layer)
    assert set(times) >= {"group", "matmul", "dense"}
    assert not {"packed", "packed-pieces"} <= set(times)  # the same for one image
    assert all(0 < seconds < 10 for seconds in times.values())


def test_large_results_are_only_made_in_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    layer = InterleavedGroupConv2d(4, 2, 1).requires_grad_(False)
    x = torch.randn(2, 8, 4, 4)
    assert set(backends.measure(x, layer)) == {"group", "matmul", "matmul-pieces", "dense"}
    monkeypatch.setattr(buffers, "SMALLEST_BYTES", 2 * 8 * 16 * 4)
    assert set(backends.measure(x, layer)) == {"matmul-pieces", "dense"}
    assert set(backends.measure(x.double(), layer.double())) == {"matmul-pieces", "dense"}
    if onednn.packing_works():
        x = x.contiguous(memory_format=torch.channels_last)
        assert set(backends.measure(x, layer.float())) == {"packed-pieces", "packed-dense", "dense"}
    layer.requires_grad_()
    assert set(backends.measure(x, layer)) == {"group", "matmul", "dense"}


def test_counting_tracing_and_export_see_the_definition():
    layer = InterleavedGroupConv2d(8, 4)
    factored = 8 * 16 * 9 + 4 * 64
    assert cost(layer, (32, 6, 6)).macs == 36 * factored
    layer.backend = "matmul"
    assert cost(layer, (32, 6, 6)).macs == 36 * factored
    layer.backend = "auto"
    program = torch.export.export(layer.eval(), (torch.randn(2, 32, 6, 6),))
    kinds = {str(node.target) for node in program.graph.nodes}
    assert not any("index" in kind or "gather" in kind for kind in kinds)
    x = torch.randn(2, 32, 6, 6)
    torch.testing.assert_close(program.module()(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", ["packed", "packed-dense"])
def test_packed_backends_refuse_what_they_cannot_do(backend):
    layer = InterleavedGroupConv2d(4, 2, backend=backend)
    x = torch.randn(1, 8, 4, 4)
    with pytest.raises(InvalidArgument, match="gradient"):
        layer(x.contiguous(memory_format=torch.channels_last))
    with torch.no_grad(), pytest.raises(InvalidArgument, match="channels_last"):
        layer(x)
    with torch.no_grad(), pytest.raises(InvalidArgument, match="float64"):
        layer.double()(x.double().contiguous(memory_format=torch.channels_last))


def test_compiled_layers_agree_with_eager():
    layer = InterleavedGroupConv2d(4, 3)
    x = torch.randn(2, 12, 6, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)
