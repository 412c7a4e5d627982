"""Path counts by walking through blocks, shuffles and their inverses."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convsmith.compression.operators.chain_spec import (
    ChannelPermutation,
    check_divides,
    interleaved,
    mixed_radix,
    nearest_divisors,
    path_counts,
    shuffle,
    shuffled,
)
from convsmith.errors import InvalidArgument


def walked(spec):
    """Count paths one by one: from every input, follow every edge of every factor."""
    counts = torch.zeros(spec.out_channels, spec.in_channels, dtype=torch.int64)
    for start in range(spec.in_channels):
        at = {start: 1}
        for factor in spec.factors:
            position = (
                list(range(factor.in_channels)) if factor.order is None else factor.order.inverse().index().tolist()
            )
            after = {}
            for channel, paths in at.items():
                block = position[channel] // factor.members_in
                for out in range(block * factor.members_out, (block + 1) * factor.members_out):
                    after[out] = after.get(out, 0) + paths
            at = after
        final = spec.final_order
        position = list(range(spec.out_channels)) if final is None else final.inverse().index().tolist()
        for channel, paths in at.items():
            counts[position[channel], start] = paths
    return counts


@pytest.mark.parametrize(
    "spec",
    [
        interleaved(3, 2),
        interleaved(4, 3, out_primary=2, out_members=5),
        interleaved(4, 2, out_members=4, groups=2),
        mixed_radix((2, 3, 4)),
        mixed_radix((2, 3, 2), (3, 1, 4)),
        shuffled(24, (4, 4, 4)),
        shuffled(12, (2, 3)),
    ],
)
def test_path_counts_equal_walked_paths(spec):
    assert torch.equal(path_counts(spec), walked(spec))


@pytest.mark.parametrize("sizes", [(8, 8), (4, 4, 4), (2, 3, 4), (2,) * 6, (3,) * 4, (1, 4, 4), (5,)])
def test_mixed_radix_chains_have_one_path_per_pair(sizes):
    counts = path_counts(mixed_radix(sizes))
    assert counts.shape == (math.prod(sizes),) * 2
    assert (counts == 1).all()


@given(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=4))
def test_changing_the_width_keeps_one_path(sizes):
    into, out = zip(*sizes, strict=True)
    assert (path_counts(mixed_radix(into, out)) == 1).all()


@pytest.mark.parametrize(("members", "layers"), [(2, 5), (3, 3), (4, 3), (8, 2)])
def test_the_same_stride_shuffle_between_all_factors_is_complementary(members, layers):
    counts = path_counts(shuffled(members**layers, (members,) * layers))
    assert (counts == 1).all()


def test_two_factors_on_the_same_digit_leave_gaps():
    factors = mixed_radix((2, 3)).factors
    first = factors[0]
    twice = type(mixed_radix((2, 3)))((first, first))
    assert (path_counts(twice) == 0).any()


def test_members_of_the_authors_widening_block_have_two_paths():
    assert (path_counts(interleaved(24, 2, out_members=4, groups=2)) == 2).all()


@pytest.mark.parametrize(("primary", "members"), [(2, 3), (4, 8), (24, 2), (16, 16), (100, 2)])
def test_the_second_shuffle_undoes_the_first(primary, members):
    channels = primary * members
    x = torch.randn(2, channels, 2, 3, requires_grad=True)
    there = shuffle(channels, primary)(x)
    back = shuffle(channels, members)(there)
    assert torch.equal(back, x)
    assert torch.equal(there, nn.ChannelShuffle(primary)(x))
    weight = torch.randn_like(x)
    (gradient,) = torch.autograd.grad((back * weight).sum(), x)
    assert torch.equal(gradient, weight)


@given(st.permutations(range(4)), st.lists(st.integers(1, 3), min_size=4, max_size=4))
def test_an_order_is_its_index_and_its_inverse_undoes_it(dims, view):
    order = ChannelPermutation(tuple(view), tuple(dims))
    x = torch.randn(2, math.prod(view), 3, 2)
    assert torch.equal(order(x), x[:, order.index()])
    assert torch.equal(order.inverse()(order(x)), x)
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(order(last), x[:, order.index()])
    assert order(last).is_contiguous(memory_format=torch.channels_last)


def test_orders_survive_an_empty_batch_and_any_stride():
    order = shuffle(6, 2)
    assert order(torch.randn(0, 6, 2, 2)).shape == (0, 6, 2, 2)
    x = torch.randn(2, 12, 4, 4)[:, ::2, ::2]
    assert torch.equal(order(x), x[:, order.index()])


def test_all_factorisations_of_24():
    for layers in (1, 2, 3):
        for sizes in itertools.product(range(1, 25), repeat=layers):
            if math.prod(sizes) == 24:
                assert (path_counts(mixed_radix(sizes)) == 1).all()


def test_messages_name_the_number_and_the_nearest():
    assert nearest_divisors(36, 5) == (4, 6)
    with pytest.raises(InvalidArgument, match=r"5 to divide 36[\s\S]*leaves 1[\s\S]*4 or 6"):
        check_divides(5, 36, "the groups")
    with pytest.raises(InvalidArgument, match="factor 2 of the partitions"):
        shuffled(24, (4, 5))
    with pytest.raises(InvalidArgument, match="same number of digits"):
        mixed_radix((2, 3), (2,))


@pytest.mark.parametrize(
    "call",
    [
        lambda: mixed_radix(()),
        lambda: mixed_radix((2, 0)),
        lambda: interleaved(0, 2),
        lambda: interleaved(2, 2, out_members=0),
        lambda: shuffle(6, 0),
        lambda: interleaved(4, 2, groups=3),
    ],
)
def test_bad_numbers(call):
    with pytest.raises(InvalidArgument):
        call()
