"""Keyed numbers: reproducible, uniform, independent of the way of asking."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsmith.data.keyed import hash64, shuffled


def splitmix(word):
    """SplitMix64's finaliser in Python integers."""
    mask = 2**64 - 1
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & mask
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & mask
    return word ^ (word >> 31)


def naive(*parts):
    word = 0
    for part in parts:
        word = splitmix(((word ^ (part % 2**64)) + 0x9E3779B97F4A7C15) % 2**64)
    return word


@given(st.lists(st.integers(-(2**63), 2**64 - 1), min_size=1, max_size=4))
def test_hash_is_the_formula(parts):
    assert int(hash64(*parts)[0]) == naive(*parts)


def test_hash_of_arrays_is_the_hash_of_their_elements():
    got = hash64(7, np.arange(5)[:, None], np.arange(3))
    assert [[int(w) for w in row] for row in got] == [[naive(7, i, j) for j in range(3)] for i in range(5)]


@given(st.integers(0, 200), st.integers(0, 2**40))
def test_a_shuffle_is_a_permutation(count, seed):
    order = shuffled(torch.arange(count), seed, 1)
    assert torch.equal(order.sort().values, torch.arange(count))


def test_a_shuffle_of_a_part_keeps_the_order_of_the_whole():
    whole = shuffled(torch.arange(50), 9)
    part = torch.tensor([3, 40, 11, 8])
    expected = [n for n in whole.tolist() if n in part.tolist()]
    assert part[shuffled(part, 9)].tolist() == expected
