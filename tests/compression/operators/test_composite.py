"""Composite kernels of any linear stack, their density and rank, and what has none."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convsmith.compression import (
    ChannelOrder,
    InterleavedGroupConv2d,
    InterleavedStructuredConv2d,
    composite_kernel,
    dense_convolution,
    kernel_structure,
    shuffle,
)
from convsmith.errors import InvalidArgument


def test_composites_of_stacks():
    stack = nn.Sequential(
        nn.Conv2d(6, 8, 1, groups=2, bias=False),
        ChannelOrder(shuffle(8, 2)),
        nn.Identity(),
        nn.Sequential(nn.Conv2d(8, 8, 3, 2, 2, 2, groups=8, bias=False), nn.ChannelShuffle(4)),
        nn.Conv2d(8, 10, 1, bias=False),
    ).double()
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    kernel = composite_kernel(stack)
    torch.testing.assert_close(F.conv2d(x, kernel, None, 2, 2, 2), stack(x), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(dense_convolution(stack)(x), stack(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        (nn.Sequential(nn.Conv2d(2, 2, 3, bias=False), nn.Conv2d(2, 2, 3, bias=False)), "at most one spatial"),
        (nn.Sequential(nn.Conv2d(2, 2, 3)), "bias=False"),
        (nn.Sequential(nn.Conv2d(2, 2, 1, bias=False), nn.ReLU()), "is linear"),
        (nn.Sequential(), "at least one linear layer"),
        (nn.Sequential(nn.ChannelShuffle(2), nn.Conv2d(2, 2, 1, bias=False)), "knows its channels"),
        (nn.Sequential(nn.Conv2d(2, 3, 1, bias=False), nn.Conv2d(2, 2, 1, bias=False)), "3 into 2"),
        (nn.Conv2d(2, 2, 3, padding=1, padding_mode="reflect", bias=False), "zeros"),
    ],
)
def test_what_has_no_composite(stack, words):
    with pytest.raises(InvalidArgument, match=words):
        composite_kernel(stack)


def test_density_and_rank_are_reported():
    pair = kernel_structure(InterleavedGroupConv2d(6, 4))
    assert (pair.density, pair.rank, pair.full_rank, pair.block_rank) == (1.0, 24, 24, 1)
    assert (pair.weights, pair.dense_weights) == (6 * 16 * 9 + 4 * 36, 24 * 24 * 9)
    grouped = kernel_structure(nn.Conv2d(6, 6, 1, groups=3, bias=False))
    assert grouped.density == pytest.approx(1 / 3)
    assert grouped.block_rank is None
    loose = kernel_structure(InterleavedStructuredConv2d((4, 4), 1, channels=24))
    assert loose.density == pytest.approx(16 / 24)
    narrow = nn.Sequential(nn.Conv2d(6, 2, 1, bias=False), nn.Conv2d(2, 6, 1, bias=False))
    assert kernel_structure(narrow).rank == 2
