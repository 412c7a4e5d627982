"""The complementary condition in all its spellings, and balance against exhaustive search."""

import itertools
import math

import pytest
import torch

from convsmith.compression import (
    InterleavedGroupConv2d,
    InterleavedStructuredConv2d,
    balanced_cost,
    balanced_partition,
    condition,
    is_complementary,
    mixed_radix,
    shortest_partition,
)
from convsmith.errors import InvalidArgument


def test_every_spelling_of_the_same_chain():
    groups = [[[0, 1], [2, 3], [4, 5]], [[0, 2, 4], [1, 3, 5]]]
    labels = [[0, 0, 1, 1, 2, 2], [0, 1, 0, 1, 0, 1]]
    for spelling in (groups, labels, torch.tensor(labels), (2, 3), mixed_radix((2, 3)), InterleavedGroupConv2d(3, 2)):
        judged = condition(spelling)
        assert judged.strict
        assert judged.loose
        assert judged.density == 1.0
        assert is_complementary(spelling)
    assert "exactly one path" in condition(groups).reason


def test_a_gap_is_explained_with_the_channel_it_hits():
    judged = condition([[[0, 1], [2, 3]], [[0, 1], [2, 3]]])
    assert (judged.strict, judged.loose, judged.fewest, judged.most, judged.density) == (False, False, 0, 2, 0.5)
    assert "input channel 2 never reaches output channel 0" in judged.reason
    assert "sees 2 of 4" in judged.reason


def test_uneven_and_double_paths():
    even = [[[0, 1, 2, 3]], [[0, 1, 2, 3]]]
    assert condition(even).loose
    assert not condition(even).strict
    assert not is_complementary(even)
    assert is_complementary(even, strict=False)
    assert "4 paths" in condition(even).reason
    uneven = [[[0, 1, 2], [3]], [[0, 1, 2, 3]]]
    assert not is_complementary(uneven, strict=False)
    assert "from 1 to 3" in condition(uneven).reason


def test_the_articles_eight_channels_three_layers():
    chain = InterleavedStructuredConv2d((2, 2, 2))
    assert is_complementary(chain)
    assert (chain.composite() != 0).all()


def test_a_loose_chain_of_416_channels():
    two = condition(InterleavedStructuredConv2d((8, 8), 1, channels=416, device="meta"))
    three = condition(InterleavedStructuredConv2d((8, 8, 8), 1, channels=416, device="meta"))
    assert two.density == pytest.approx(64 / 416)
    assert three.density == 1.0
    assert not three.strict


@pytest.mark.parametrize(
    ("partitions", "words"),
    [
        ([], "at least one layer"),
        ([[[0, 1], [1, 2]]], "every channel once"),
        ([[[0, 1], [3]]], "missing"),
        ([[0, 0], [0, 0, 1]], "same channels"),
        ((2, 0), "at least one member"),
        ([[]], "group number of every channel"),
        ([[0.5, 1]], "group number of every channel"),
        ([[["a"], [0]]], "group number of every channel"),
    ],
)
def test_bad_partitions(partitions, words):
    with pytest.raises(InvalidArgument, match=words):
        condition(partitions)


def exhaustive(channels, layers, area):
    divisors = [k for k in range(1, channels + 1) if channels % k == 0]
    options = [s for s in itertools.product(divisors, repeat=layers) if math.prod(s) == channels]
    return min(area * s[0] + sum(s[1:]) for s in options)


@pytest.mark.parametrize("channels", [1, 7, 12, 64, 72, 96])
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
@pytest.mark.parametrize("area", [1, 9])
def test_balanced_partitions_are_the_lightest(channels, layers, area):
    sizes = balanced_partition(channels, layers, area=area)
    assert math.prod(sizes) == channels
    assert len(sizes) == layers
    assert area * sizes[0] + sum(sizes[1:]) == exhaustive(channels, layers, area)
    assert channels * (area * sizes[0] + sum(sizes[1:])) >= balanced_cost(channels, layers, area) * (1 - 1e-12)


@pytest.mark.parametrize(
    ("channels", "sizes", "with_depthwise"),
    [
        (64, (4, 4, 4), 21),
        (128, (2, 4, 4, 4), 23),
        (256, (4, 4, 4, 4), 25),
        (512, (2, 4, 4, 4, 4), 27),
        (1024, (4, 4, 4, 4, 4), 29),
        (96, (2, 3, 4, 4), 22),
        (72, (2, 3, 3, 4), 21),
    ],
)
def test_the_shortest_of_the_lightest(channels, sizes, with_depthwise):
    assert shortest_partition(channels) == sizes
    assert sum(sizes) + 9 == with_depthwise


def test_balance_reduces_to_nine_members_for_two_layers():
    assert balanced_partition(144, 2, area=9) == (4, 36)
    assert balanced_partition(9, 2, area=9) == (1, 9)


@pytest.mark.parametrize(
    ("channels", "costs"),
    [
        (64, {1: 64, 2: 16, 3: 12, 4: 11.3, 5: 11.5, 6: 12}),
        (256, {1: 256, 2: 32, 3: 19.0, 4: 16, 5: 15.2, 6: 15.1, 7: 15.5, 8: 16}),
        (512, {1: 512, 2: 45.3, 3: 24, 4: 19.0, 5: 17.4, 6: 17.0, 7: 17.1, 8: 17.5}),
        (1024, {1: 1024, 2: 64, 3: 30.2, 4: 22.6, 5: 20, 6: 19.0, 7: 18.8, 8: 19.0}),
    ],
)
def test_the_table_of_balanced_costs(channels, costs):
    for layers, per_channel in costs.items():
        assert balanced_cost(channels, layers) / channels == pytest.approx(per_channel, abs=0.053)


@pytest.mark.parametrize("arguments", [(0, 2), (4, 0), (-1, 1)])
@pytest.mark.parametrize("function", [balanced_partition, balanced_cost])
def test_bad_balance(function, arguments):
    with pytest.raises(InvalidArgument, match="at least 1"):
        function(*arguments)
