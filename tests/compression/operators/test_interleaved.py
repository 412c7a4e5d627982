"""The chains against a loop over paths, their composite kernels, and errors that say what to change."""

import copy
import io
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from convsmith.compression import (
    InterleavedGroupConv2d,
    InterleavedStructuredConv2d,
    composite_kernel,
    cost,
)
from convsmith.errors import InvalidArgument


def reference_kernel(layer, primary, members, kernel):
    """Equation 5 of the paper: W[(l', m'), (l, m)] = W2[m'][l', l] W1[l][m', m]."""
    first = layer.weights[0].view(primary, members, members, kernel, kernel)
    second = layer.weights[1].view(members, primary, primary)
    out = torch.zeros(primary * members, primary * members, kernel, kernel, dtype=first.dtype)
    for l in range(primary):  # noqa: E741
        for m in range(members):
            for l_out in range(primary):
                for m_out in range(members):
                    out[l_out * members + m_out, l * members + m] = second[m_out, l_out, l] * first[l, m_out, m]
    return out


@given(st.integers(1, 5), st.integers(1, 4), st.sampled_from([1, 3, 5]))
def test_parameters_composite_and_output(primary, members, kernel):
    layer = InterleavedGroupConv2d(primary, members, kernel, dtype=torch.float64)
    count = primary * members**2 * kernel**2 + members * primary**2
    assert sum(p.numel() for p in layer.parameters()) == count
    expected = reference_kernel(layer, primary, members, kernel)
    torch.testing.assert_close(composite_kernel(layer), expected, rtol=0, atol=1e-14)
    x = torch.randn(2, primary * members, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, expected, padding=kernel // 2), rtol=1e-12, atol=1e-12)


def test_against_two_plain_convolutions_and_shuffles_in_float32():
    layer = InterleavedGroupConv2d(24, 2)
    stack = nn.Sequential(
        nn.Conv2d(48, 48, 3, padding=1, groups=24, bias=False),
        nn.ChannelShuffle(24),
        nn.Conv2d(48, 48, 1, groups=2, bias=False),
        nn.ChannelShuffle(2),
    )
    stack[0].weight.data, stack[2].weight.data = layer.weights[0].data, layer.weights[1].data
    x = torch.randn(2, 48, 8, 8)
    torch.testing.assert_close(layer(x), stack(x), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(composite_kernel(layer), composite_kernel(stack), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kernel", [1, 3])
def test_sub_blocks_have_rank_one_and_the_whole_is_dense_and_full(kernel):
    primary, members = 6, 4
    layer = InterleavedGroupConv2d(primary, members, kernel, dtype=torch.float64)
    dense = composite_kernel(layer).detach()
    assert (dense != 0).all()
    blocks = dense.view(primary, members, primary, members, -1).permute(1, 2, 0, 3, 4).flatten(3)
    for block in blocks.flatten(0, 1):
        assert block.shape == (primary, members * kernel**2)
        assert torch.linalg.matrix_rank(block) == 1
    assert torch.linalg.matrix_rank(dense.flatten(1)) == 24


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [None, 0, 2])
def test_geometry_as_conv2d(stride, dilation, padding):
    layer = InterleavedGroupConv2d(
        4, 2, 3, stride, padding, dilation, out_primary=3, out_members=5, dtype=torch.float64
    )
    x = torch.randn(2, 8, 11, 9, dtype=torch.float64)
    pad = dilation if padding is None else padding
    expected = F.conv2d(x, composite_kernel(layer), None, stride, pad, dilation)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.to_dense()(x), expected, rtol=1e-12, atol=1e-12)
    assert layer(x).shape[1] == layer.out_channels == 15


def test_every_setting_may_differ_between_the_directions():
    settings = {"stride": (2, 1), "padding": (0, 3), "dilation": (1, 2)}
    layer = InterleavedGroupConv2d(4, 2, (2, 3), **settings, dtype=torch.float64)
    assert layer.weights[0].shape == (8, 2, 2, 3)
    assert "kernel_size=(2, 3), stride=(2, 1), padding=(0, 3)" in repr(layer)
    x = torch.randn(2, 8, 9, 7, dtype=torch.float64)
    expected = F.conv2d(x, composite_kernel(layer), None, **settings)
    for backend in ("group", "matmul", "dense", "auto"):
        layer.backend = backend
        torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(layer.to_dense()(x), expected, rtol=1e-12, atol=1e-12)
    assert layer.geometry.output_size((9, 7)) == expected.shape[2:]
    wide = InterleavedStructuredConv2d((2, 2), (1, 5), dilation=(1, 2))
    assert wide.geometry.padding == (0, 4)
    assert wide(torch.randn(1, 4, 6, 9)).shape == (1, 4, 6, 9)


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 3)), min_size=1, max_size=4))
def test_structured_chains_multiply_one_weight_per_factor(sizes):
    into, out = zip(*sizes, strict=True)
    layer = InterleavedStructuredConv2d(into, 3, out_partitions=out, dtype=torch.float64)
    dense = composite_kernel(layer)
    assert dense.shape == (math.prod(out), math.prod(into), 3, 3)
    x = torch.randn(1, math.prod(into), 5, 4, dtype=torch.float64)
    torch.testing.assert_close(layer(x), F.conv2d(x, dense, padding=1), rtol=1e-11, atol=1e-11)
    with torch.no_grad():
        for weight in layer.weights:
            weight.fill_(1.0)
    assert (composite_kernel(layer) == 1).all()


def test_structured_parameters_by_factor():
    layer = InterleavedStructuredConv2d((2, 3, 4))
    assert [w.numel() for w in layer.weights] == [24 * 2 * 9, 24 * 3, 24 * 4]
    assert cost(layer, (24, 5, 5)).macs == 25 * (24 * 2 * 9 + 24 * 3 + 24 * 4)


def test_two_digits_are_the_interleaved_pair():
    pair = InterleavedGroupConv2d(5, 3)
    chain = InterleavedStructuredConv2d((3, 5))
    chain.load_state_dict(pair.state_dict())
    torch.testing.assert_close(composite_kernel(chain), composite_kernel(pair), rtol=0, atol=0)


def test_one_partition_is_a_dense_convolution_with_a_scale():
    layer = InterleavedGroupConv2d(1, 6, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    expected = F.conv2d(x, layer.weights[0], padding=1) * layer.weights[1].view(1, 6, 1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_one_member_is_depthwise_and_dense_pointwise():
    layer = InterleavedGroupConv2d(6, 1, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    expected = F.conv2d(F.conv2d(x, layer.weights[0], padding=1, groups=6), layer.weights[1])
    torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)


def test_the_articles_example_of_half_the_multiplications():
    dense = nn.Conv2d(6, 6, 5, padding=2, bias=False)
    grouped = nn.Conv2d(6, 6, 5, padding=2, groups=2, bias=False)
    assert cost(dense, (6, 1, 1)).macs == 900
    assert cost(grouped, (6, 1, 1)).macs == 450


def test_a_loose_chain_against_explicit_shuffles():
    layer = InterleavedStructuredConv2d((4, 4, 4), 3, channels=24, dtype=torch.float64)
    x = torch.randn(2, 24, 5, 5, dtype=torch.float64)
    y = F.conv2d(x, layer.weights[0], padding=1, groups=6)
    for weight in list(layer.weights)[1:]:
        y = F.conv2d(y.view(2, 6, 4, 5, 5).transpose(1, 2).reshape(2, 24, 5, 5), weight, groups=6)
    torch.testing.assert_close(layer(x), y, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(F.conv2d(x, composite_kernel(layer), padding=1), y, rtol=1e-12, atol=1e-12)


def test_the_initial_variance_goes_through_the_linear_factors():
    layer = InterleavedStructuredConv2d((4, 4, 8))
    with torch.no_grad():
        ratio = float(layer(torch.randn(8, 128, 16, 16))[:, :, 2:-2, 2:-2].var())
    assert 1.5 < ratio < 2.6  # gain 2 once, not once per factor (which would give 8)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: InterleavedGroupConv2d(4, 2, secondary_groups=3), r"3 to divide 8[\s\S]*2 or 4"),
        (lambda: InterleavedGroupConv2d(0, 2), "at least one member"),
        (lambda: InterleavedGroupConv2d(4, 2, 3, stride=0), "stride"),
        (lambda: InterleavedGroupConv2d(4, 2, 3, padding=-1), "padding"),
        (lambda: InterleavedGroupConv2d(4, 2, 3, padding=(1, -1)), "padding is an integer that is not negative"),
        (lambda: InterleavedGroupConv2d(4, 2, (3, 3, 3)), "kernel_size is a positive integer, or a"),
        (lambda: InterleavedGroupConv2d(4, 2, 3, stride=1.5), "stride"),
        (lambda: InterleavedGroupConv2d(4, 2, 3, dilation=(1, 0)), "dilation"),
        (lambda: InterleavedGroupConv2d(4, 2, backend="matmull"), "did you mean 'matmul'"),
        (lambda: InterleavedStructuredConv2d((5, 2), channels=24), r"5 to divide 24[\s\S]*4 or 6"),
        (lambda: InterleavedStructuredConv2d((2, 2), channels=8, out_partitions=(2, 2)), "loose chain"),
        (lambda: InterleavedGroupConv2d(4, 2)(torch.randn(1, 9, 4, 4)), r"\[B, 8, H, W\]"),
        (lambda: InterleavedGroupConv2d(4, 2)(torch.randn(8, 4, 4)), r"\[B, 8, H, W\]"),
    ],
)
def test_errors_say_what_to_change(build, words):
    with pytest.raises(InvalidArgument, match=words):
        build()


def test_an_empty_batch_a_single_pixel_and_strided_input():
    layer = InterleavedGroupConv2d(4, 2)
    assert layer(torch.randn(0, 8, 4, 4)).shape == (0, 8, 4, 4)
    assert layer(torch.randn(1, 8, 1, 1)).shape == (1, 8, 1, 1)
    x = torch.randn(2, 16, 8, 8)[:, ::2, ::2, ::2]
    torch.testing.assert_close(layer(x), layer(x.contiguous()), rtol=1e-5, atol=1e-6)


def test_copies_and_state_dicts():
    layer = InterleavedGroupConv2d(4, 2)
    x = torch.randn(1, 8, 4, 4)
    y = layer(x)
    torch.testing.assert_close(copy.deepcopy(layer)(x), y, rtol=1e-6, atol=1e-6)
    saved = io.BytesIO()
    torch.save(layer.state_dict(), saved)
    saved.seek(0)
    other = InterleavedGroupConv2d(4, 2)
    other.load_state_dict(torch.load(saved, weights_only=True))
    torch.testing.assert_close(other(x), y, rtol=1e-5, atol=1e-6)
    assert "primary=4, members=2" in repr(layer)
