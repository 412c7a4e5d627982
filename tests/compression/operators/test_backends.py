"""All backends give the numbers of a plain sum over weights, in output and gradient; the rule needs no clock."""

import subprocess
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from convsmith.compression import InterleavedGroupConv2d, InterleavedStructuredConv2d, composite_kernel, cost
from convsmith.compression.operators import backends

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


@pytest.mark.parametrize("backend", ["group", "matmul", "dense"])
@pytest.mark.parametrize("change", ["in place", "replaced", "optimizer"])
def test_every_backend_follows_the_weights(backend, change):
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


def test_compiled_layers_agree_with_eager():
    layer = InterleavedGroupConv2d(4, 3)
    x = torch.randn(2, 12, 6, 6)
    compiled = torch.compile(layer, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("layer", "x", "chosen"),
    [
        (InterleavedGroupConv2d(16, 16, 1), torch.zeros(2, 256, 7, 7), "matmul"),
        (InterleavedGroupConv2d(16, 16, 1), torch.zeros(2, 256, 7, 7).to(memory_format=torch.channels_last), "group"),
        (InterleavedGroupConv2d(8, 8, 1), torch.zeros(8, 64, 28, 28), "dense"),
        (InterleavedGroupConv2d(8, 8, 1), torch.zeros(1, 64, 7, 7), "matmul"),  # the kernel would cost more
        (InterleavedGroupConv2d(8, 8, 3), torch.zeros(8, 64, 28, 28), "matmul"),  # a seventh of the dense weights
        (InterleavedGroupConv2d(64, 4, 1), torch.zeros(8, 256, 28, 28), "matmul"),
        (InterleavedGroupConv2d(16, 16, 1), torch.zeros(2, 256, 7, 7, dtype=torch.float16), "group"),
        (InterleavedGroupConv2d(16, 16, 1), torch.zeros(0, 256, 7, 7), "group"),
        (InterleavedGroupConv2d(16, 16, 1), torch.zeros(2, 256, 7, 7, device="meta"), "group"),
    ],
)
def test_the_rule_follows_shape_layout_dtype_and_device(layer, x, chosen):
    with torch.no_grad():
        assert backends.rule(x, layer) == chosen


def test_the_rule_follows_the_mode():
    layer, x = InterleavedGroupConv2d(16, 16, 1), torch.zeros(2, 256, 7, 7)
    assert backends.rule(x, layer) == "group"  # weights that are trained
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert backends.rule(x, layer) == "group"
    assert backends.rule(x, layer.requires_grad_(False)) == "matmul"


def test_two_fresh_processes_give_the_same_bits():
    program = (
        "import torch; from convsmith.compression import InterleavedGroupConv2d as Pair; torch.manual_seed(0)\n"
        "torch.set_num_threads(2); pair = Pair(16, 16, 1); x = torch.randn(2, 256, 9, 9)\n"
        "import hashlib\n"
        "with torch.no_grad(): print(hashlib.sha256(pair(x).numpy().tobytes()).hexdigest())"
    )
    runs = [subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True) for _ in "ab"]
    assert len(runs[0].stdout.strip()) == 64
    assert runs[0].stdout == runs[1].stdout
