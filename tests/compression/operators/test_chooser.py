"""The widest block against exhaustive search, and the structures of a width against their layers."""

import math

import pytest

from convsmith.compression import InterleavedGroupConv2d, InterleavedStructuredConv2d
from convsmith.compression.operators.chooser import chain_params, structures, widest_bound, widest_pairs
from convsmith.errors import InvalidArgument


def exhaustive(budget, area):
    """Return the widest (G, L, M) with L M (S M + L) <= budget by trying all."""
    best = (0, 0, 0)
    for members in range(1, 40):
        for primary in range(1, 400):
            if primary * members * (area * members + primary) <= budget:
                best = max(best, (primary * members, primary, members))
    return best


@pytest.mark.parametrize("budget", [10, 162, 1296, 2304, 4672, 20_000])
@pytest.mark.parametrize("area", [1, 9, 25])
def test_the_widest_is_the_widest(budget, area):
    if budget < area + 1:
        return
    found = widest_pairs(budget, area)
    assert found[0].channels == exhaustive(budget, area)[0]
    bound = widest_bound(budget, area)
    for entry in found:
        assert entry.params <= budget
        assert entry.channels <= bound + 1e-9
        members, primary = entry.partitions
        assert primary * members * (area * members + primary) == entry.params
        assert (primary + 1) * members * (area * members + primary + 1) > budget


@pytest.mark.parametrize(
    ("primary", "members", "budget", "width"), [(9, 1, 162, 9), (18, 2, 1296, 36), (27, 3, 4374, 81)]
)
def test_nine_members_reach_the_bound(primary, members, budget, width):
    assert budget == 162 * members**3
    assert widest_bound(budget) == pytest.approx(width)
    best = widest_pairs(budget)[0]
    assert (best.partitions, best.channels, best.params) == ((members, primary), width, budget)


@pytest.mark.parametrize(
    ("budget", "members", "width"), [(4672, 1, 64), (4672, 2, 80.3), (4672, 4, 82.5), (2304, 2, 52.2)]
)
def test_widths_of_the_papers_budgets(budget, members, width):
    half = 9 * members / 2
    primary = -half + math.sqrt(half**2 + budget / members)
    assert primary * members == pytest.approx(width, abs=0.06)
    found = {entry.members: entry for entry in widest_pairs(budget)}
    assert found[members].channels == math.floor(primary + 1e-9) * members


def test_two_members_are_nearly_best_for_both_budgets():
    for budget in (2304, 4672):
        found = {entry.members: entry.channels for entry in widest_pairs(budget)}
        assert found[2] >= 0.93 * max(found.values())


def test_structures_are_those_of_the_layers():
    for row in structures(24):
        if row.name == "dense":
            assert row.params == 24 * 24 * 9
            continue
        layer = InterleavedStructuredConv2d(row.partitions, 3, device="meta")
        assert sum(w.numel() for w in layer.parameters()) == row.params
        if len(row.partitions) == 2:
            pair = InterleavedGroupConv2d(row.partitions[1], row.partitions[0], device="meta")
            assert sum(w.numel() for w in pair.parameters()) == row.params
    assert structures(24)[0].params == min(row.params for row in structures(24))


def test_the_lightest_of_256_is_the_balanced_chain_behind_a_depthwise():
    lightest = structures(256)[0]
    assert lightest.params == 256 * 25
    assert lightest.partitions == (1, 4, 4, 4, 4)
    names = {row.name for row in structures(256)}
    assert names == {"dense", "pair", "chain", "depthwise + dense 1x1", "dense + scale"}


def test_budgets_in_both_kinds():
    rows = structures(64, positions=49, budget=64 * 40)
    assert rows
    assert all(row.params <= 2560 and row.macs == 49 * row.params for row in rows)
    assert structures(64, positions=49, budget=49 * 2560, kind="macs") == rows
    with pytest.raises(InvalidArgument, match=r"at most 100 params[\s\S]*1344"):
        structures(64, budget=100)


@pytest.mark.parametrize(
    "call",
    [
        lambda: structures(0),
        lambda: structures(10**30),  # ran for hours
        lambda: widest_pairs(10**30),
        lambda: structures(8, kind="flops"),
        lambda: widest_pairs(0),
        lambda: widest_pairs(9),
        lambda: chain_params((0, 2)),
        lambda: widest_bound(10, 0),
    ],
)
def test_bad_numbers(call):
    with pytest.raises(InvalidArgument):
        call()


def test_a_prime_and_a_single_channel():
    assert {row.partitions for row in structures(7)} == {(7,), (1, 7), (7, 1)}
    assert [row.partitions for row in structures(1)] == [(1,)]
