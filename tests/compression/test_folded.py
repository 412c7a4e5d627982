"""Which groups are written out dense, IGCV3's block in both numberings, chains with and without a dense 1x1."""

import pytest
import torch
from torch import nn

from convsmith.compression import InterleavedGroupConv2d, InterleavedStructuredConv2d, InvertedInterleavedBlock
from convsmith.compression.folded import (
    FoldedChain,
    folded_chain,
    folded_inverted_block,
    pointwise_for_runtime,
    scale_and_shift,
)
from convsmith.errors import InvalidArgument
from tests.compression.conftest import randomised


@pytest.mark.parametrize(
    ("numbers", "groups"),
    [
        ((32, 64, 1, 2), 2),  # 16 and 32 members: whole blocks
        ((24, 64, 1, 2), 1),
        ((32, 48, 1, 2), 1),
        ((24, 48, 1, 8), 8),  # eight groups: the dense layer would cost eight times as much
        ((24, 24, 3, 2), 2),  # only 1x1
    ],
)
def test_groups_that_do_not_fill_blocks_are_written_out(numbers, groups):
    into, out, side, given = numbers
    layer = nn.Conv2d(into, out, side, padding=side // 2, groups=given).double().requires_grad_(False)
    made = pointwise_for_runtime(layer)
    assert made.groups == groups
    x = torch.randn(1, into, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(made(x), layer(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("numbers", "up", "down"),
    [
        ((32, 32, 1, 6), (64, 4), 2),  # everything fills blocks: the input stands twice
        ((24, 24, 1, 6), (24, 1), 1),  # nothing does
        ((32, 16, 1, 1), (32, 2), 1),  # two groups up, the authors' numbering
        ((16, 32, 2, 6), (16, 1), 2),
        ((22, 22, 1, 1), (22, 1), 1),  # the shuffle went into the dense projection
    ],
)
def test_inverted_blocks_by_shape(numbers, up, down):
    into, out, stride, expansion = numbers
    block = randomised(InvertedInterleavedBlock(into, out, stride, expansion))
    made = folded_inverted_block(block)
    x = torch.randn(2, into, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(made(x), block(x), rtol=1e-10, atol=1e-10)
    assert (made.expand.in_channels, made.expand.groups) == up
    if numbers == (16, 32, 2, 6):
        assert made.project.in_channels == 96
    assert made.project.groups == down


def test_a_block_with_other_norms_stays():
    block = InvertedInterleavedBlock(8, 8, norm_layer=lambda n: nn.GroupNorm(2, n))
    assert folded_inverted_block(block) is block


@pytest.mark.parametrize("normed", [True, False])
@pytest.mark.parametrize(
    "chain",
    [
        InterleavedGroupConv2d(4, 3, 3, 2),
        InterleavedGroupConv2d(4, 2, 3, out_members=4, secondary_groups=2),
        InterleavedStructuredConv2d((2, 3, 2), 3),
        InterleavedStructuredConv2d((4, 4), 3, channels=12),
    ],
)
def test_short_chains_are_two_convolutions(chain, normed):
    norm = randomised(nn.BatchNorm2d(chain.out_channels)) if normed else None
    chain = chain.double()
    made = folded_chain(chain, norm)
    assert [type(layer) for layer in made] == [nn.Conv2d, nn.Conv2d]
    x = torch.randn(2, chain.in_channels, 5, 5, dtype=torch.float64)
    expected = chain(x) if norm is None else norm(chain(x))
    torch.testing.assert_close(made(x), expected, rtol=1e-10, atol=1e-10)


def test_wide_chains_stay_chains(monkeypatch):
    monkeypatch.setattr("convsmith.compression.folded.MERGED_CHANNELS", 11)
    chain, norm = InterleavedGroupConv2d(4, 3).double(), randomised(nn.BatchNorm2d(12))
    before = [weight.detach().clone() for weight in chain.weights]
    made = folded_chain(chain, norm)
    assert isinstance(made, FoldedChain)
    x = torch.randn(2, 12, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(made(x), norm(chain(x)), rtol=1e-10, atol=1e-10)
    assert folded_chain(chain, None) is chain
    assert all(torch.equal(a, b) for a, b in zip(chain.weights, before, strict=True))


def test_scale_and_shift_are_the_norms():
    norm = randomised(nn.BatchNorm2d(3))
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    bare = nn.BatchNorm2d(3, affine=False).double().eval()
    for layer in (norm, bare):
        scale, shift = scale_and_shift(layer)
        torch.testing.assert_close(
            x * scale.view(1, 3, 1, 1) + shift.view(1, 3, 1, 1), layer(x), rtol=1e-12, atol=1e-12
        )
    with pytest.raises(InvalidArgument, match="running statistics"):
        scale_and_shift(nn.BatchNorm2d(3, track_running_stats=False))
