"""Projection against brute-force decompositions, exact recovery, and inputs that change what is nearest."""

import copy
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
    from_dense,
    mixed_radix,
    patch_second_moment,
    project,
)
from convsmith.compression.operators.backends import dense_kernel
from convsmith.errors import InvalidArgument


def discarded(kernel, members, primary, out_members, out_primary):
    """Sum of squared singular values beyond the first, block by block, with loops."""
    total = 0.0
    for m_out in range(out_members):
        for part in range(primary):
            rows = kernel[m_out::out_members]  # outputs (l', m') with this m'
            block = rows[:, part * members : (part + 1) * members].reshape(out_primary, -1)
            total += float(torch.linalg.svdvals(block)[1:].square().sum())
    return total


@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.sampled_from([1, 3]))
def test_the_error_is_the_discarded_singular_values(members, primary, out_members, out_primary, side):
    kernel = torch.randn(out_members * out_primary, members * primary, side, side, dtype=torch.float64)
    found = project(kernel, (members, primary), (out_members, out_primary))
    lost = discarded(kernel, members, primary, out_members, out_primary)
    assert found.error == pytest.approx(math.sqrt(lost), abs=1e-9)
    assert found.energy == pytest.approx(1 - lost / float(kernel.square().sum()), abs=1e-10)
    composite = dense_kernel(found.weights, mixed_radix((members, primary), (out_members, out_primary)))
    assert float((kernel - composite).norm()) == pytest.approx(found.error, abs=1e-9)


@pytest.mark.parametrize(
    "chain",
    [
        InterleavedGroupConv2d(4, 3, dtype=torch.float64),
        InterleavedGroupConv2d(4, 3, 1, 2, out_primary=3, out_members=5, dtype=torch.float64),
        InterleavedStructuredConv2d((2, 3, 2), 3, dtype=torch.float64),
        InterleavedStructuredConv2d((2, 3, 2, 2), 1, out_partitions=(3, 2, 1, 3), dtype=torch.float64),
        InterleavedStructuredConv2d((1, 4, 2), 3, dtype=torch.float64),
        InterleavedStructuredConv2d((6,), 3, dtype=torch.float64),
    ],
)
def test_a_structured_kernel_comes_back_exactly(chain):
    leaving = getattr(chain, "partitions", None)
    if isinstance(chain, InterleavedGroupConv2d):
        entering = (chain.members, chain.primary)
        leaving = (chain.spec.factors[1].groups, chain.out_channels // chain.spec.factors[1].groups)
    else:
        entering = chain.partitions
        leaving = (3, 2, 1, 3) if chain.out_channels == 18 else entering
    dense = chain.to_dense()
    back, found = from_dense(dense, entering, leaving)
    torch.testing.assert_close(composite_kernel(back), composite_kernel(chain), rtol=1e-9, atol=1e-10)
    assert found.energy == pytest.approx(1.0, abs=1e-12)
    assert type(back) is type(chain)
    x = torch.randn(1, chain.in_channels, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(back(x), dense(x), rtol=1e-9, atol=1e-9)


def test_two_factors_are_optimal_against_descent():
    kernel = torch.randn(6, 6, 1, 1, dtype=torch.float64)
    best = project(kernel, (2, 3)).error
    spec = mixed_radix((2, 3))
    for seed in range(3):
        torch.manual_seed(seed)
        weights = [torch.randn(6, k, 1, 1, dtype=torch.float64, requires_grad=True) for k in (2, 3)]
        optimizer = torch.optim.LBFGS(weights, max_iter=300, line_search_fn="strong_wolfe")

        def closure(weights=weights, optimizer=optimizer):
            optimizer.zero_grad()
            loss = (kernel - dense_kernel(weights, spec)).square().sum()
            loss.backward()
            return loss.detach()

        optimizer.step(closure)
        assert float(closure()) >= best**2 - 1e-9


@pytest.mark.parametrize(
    ("sizes", "out"), [((2, 2, 2), (2, 2, 2)), ((2, 3, 2), (3, 2, 2)), ((1, 2, 2, 2), (1, 2, 2, 2))]
)
def test_sweeps_never_lose_and_end_where_the_gradient_is_zero(sizes, out):
    kernel = torch.randn(math.prod(out), math.prod(sizes), 3, 3, dtype=torch.float64)
    errors = [project(kernel, sizes, out, sweeps=sweeps).error for sweeps in (0, 1, 5, 500)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < errors[0]
    found = project(kernel, sizes, out, sweeps=2000)
    weights = [weight.clone().requires_grad_() for weight in found.weights]
    loss = (kernel - dense_kernel(weights, mixed_radix(sizes, out))).square().sum()
    for gradient in torch.autograd.grad(loss, weights):
        assert float(gradient.abs().max()) < 1e-3


@pytest.mark.parametrize(("side", "kept"), [(4, 0.65), (8, 0.38), (16, 0.21), (32, 0.11)])
def test_random_kernels_keep_as_little_as_measured(side, kept):
    kernel = torch.randn(side * side, side * side, 1, 1, dtype=torch.float64)
    assert project(kernel, (side, side)).energy == pytest.approx(kept, abs=0.02)


def correlated(batch, channels, size):
    mixing = torch.randn(channels, 3, dtype=torch.float64)
    low = torch.randn(batch, 3, size, size, dtype=torch.float64)
    noise = 0.1 * torch.randn(batch, channels, size, size, dtype=torch.float64)
    return torch.einsum("ck,bkhw->bchw", mixing, low) + noise


@pytest.mark.parametrize(("sizes", "side"), [((2, 4), 1), ((2, 4), 3), ((2, 2, 2), 1)])
def test_inputs_make_the_output_nearer(sizes, side):
    layer = nn.Conv2d(8, 8, side, padding=side // 2, bias=False, dtype=torch.float64)
    inputs = correlated(8, 8, 10)
    _, blind = from_dense(layer, sizes)
    chain, aware = from_dense(layer, sizes, inputs=inputs, sweeps=200)
    blind_chain, _ = from_dense(layer, sizes)

    @torch.no_grad()
    def lost(candidate, x):
        return float((candidate(x) - layer(x)).square().mean() / layer(x).square().mean())

    assert aware.output_energy == pytest.approx(1 - lost(chain, inputs), abs=2e-3)
    assert lost(chain, inputs) < 0.5 * lost(blind_chain, inputs)
    assert aware.energy <= blind.energy + 1e-9


def test_white_inputs_change_nothing():
    kernel = torch.randn(6, 6, 1, 1, dtype=torch.float64)
    plain = project(kernel, (2, 3))
    white = project(kernel, (2, 3), second_moment=torch.eye(6))
    assert white.energy == pytest.approx(plain.energy, abs=1e-9)
    assert white.output_energy == pytest.approx(plain.energy, abs=1e-6)


def test_the_second_moment_is_that_of_the_patches():
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    columns = F.unfold(x, 3, 1, 1, 2)
    expected = torch.einsum("bip,bjp->ij", columns, columns) / (2 * columns.shape[-1])
    torch.testing.assert_close(patch_second_moment(x, 3, 2, 1), expected, rtol=1e-12, atol=1e-12)


def test_a_zero_kernel_and_a_single_channel():
    assert project(torch.zeros(4, 4, 3, 3), (2, 2)).energy == 1.0
    assert project(torch.zeros(4, 4, 1, 1), (2, 2), second_moment=torch.eye(4)).output_energy == 1.0
    assert project(torch.ones(1, 1, 3, 3), (1, 1)).error == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("aware", [False, True])
def test_rectangular_layers_come_back(aware):
    layer = nn.Conv2d(6, 6, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2), bias=False).double()
    with torch.no_grad():
        layer.weight.copy_(project_back(layer.weight, (2, 3)))
    x = torch.randn(12, 6, 9, 8, dtype=torch.float64)
    chain, found = from_dense(layer, (2, 3), inputs=x if aware else None)
    assert found.energy == pytest.approx(1, abs=1e-9)
    torch.testing.assert_close(chain(x), layer(x), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(chain.to_dense()(x), layer(x), rtol=1e-6, atol=1e-6)


def test_the_layout_of_a_kernel_changes_nothing():
    conv, inputs = nn.Conv2d(8, 8, 3, padding=1, bias=False).double(), torch.randn(2, 8, 6, 6, dtype=torch.float64)
    last = copy.deepcopy(conv).to(memory_format=torch.channels_last)
    for images in (None, inputs):
        chains = [from_dense(layer, (4, 2), inputs=images)[0] for layer in (conv, last)]
        torch.testing.assert_close(chains[0].composite(), chains[1].composite())


def project_back(kernel, partitions):
    """Return the nearest kernel that has the structure."""
    return dense_kernel(project(kernel, partitions).weights, mixed_radix(partitions))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: project(torch.randn(4, 6, 1, 1), (2, 2), (2, 2)), r"2 x 2 = 4[\s\S]*6 channels in"),
        (lambda: project(torch.randn(6, 4, 1, 1), (2, 2)), r"6 channels out"),
        (lambda: project(torch.randn(4, 4, 1, 1), (2, 2), second_moment=torch.eye(3)), r"\[4, 4\]"),
        (lambda: from_dense(nn.Conv2d(4, 4, 3, groups=2), (2, 2)), "dense convolution"),
        (lambda: from_dense(nn.Conv2d(4, 4, 3, padding="same"), (2, 2)), "zero padding given in numbers"),
        (lambda: from_dense(nn.Conv2d(4, 4, 3, padding_mode="circular"), (2, 2)), "zero padding"),
        (lambda: patch_second_moment(torch.randn(0, 4, 3, 3), 1), "at least one image"),
    ],
)
def test_bad_arguments(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()
