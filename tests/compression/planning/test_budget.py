"""The allocation against brute force, the scan against its definition."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from convsmith.compression.methods.decomposition import factor
from convsmith.compression.methods.method import output_error
from convsmith.compression.planning.budget import GRID, Option, allocate, scan
from convsmith.compression.planning.prefix import Prefix
from convsmith.inspection.trace import trace_layers

TABLE = st.lists(
    st.lists(st.tuples(st.integers(1, 60), st.floats(0, 10)), min_size=1, max_size=4), min_size=1, max_size=4
)


@given(TABLE, st.integers(1, 200))
def test_allocation_is_the_best_there_is(table, limit):
    costs = [[c for c, _ in row] for row in table]
    sensitivities = [[d for _, d in row] for row in table]
    fits = [
        sum(row[i][1] for row, i in zip(table, pick, strict=True))
        for pick in itertools.product(*(range(len(row)) for row in table))
        if sum(row[i][0] for row, i in zip(table, pick, strict=True)) <= limit * (1 - len(table) / GRID)
    ]
    chosen = allocate(costs, sensitivities, limit)
    if not fits:
        return
    assert chosen is not None
    assert sum(costs[i][pick] for i, pick in enumerate(chosen)) <= limit
    assert sum(sensitivities[i][pick] for i, pick in enumerate(chosen)) <= min(fits) + 1e-9


def test_allocation_says_when_nothing_fits():
    assert allocate([[5], [6]], [[0.0], [0.0]], 10) is None
    assert allocate([[5]], [[0.0]], -1) is None
    assert allocate([], [], 1) == []


def test_equal_damage_spends_the_budget():
    assert allocate([[1, 5, 9]], [[1.0, 1.0, 1.0]], 7) == [1]


def test_scan_measures_the_output_with_one_layer_changed(Plain, settled):
    images = torch.randn(8, 1, 8, 8)
    model = settled(Plain(), images)
    seen = trace_layers(model, images)
    layer = seen.by_name()["conv2"]
    ranks = [2, 5, 9, 16]
    options = [Option({"rank": r}, r, r, 1 / r) for r in ranks]
    old = model.conv2

    def build(_layer, option):
        return factor(old, "svd", option.setting["rank"])

    sensitivities = scan(Prefix(model, seen, 8), layer, options, build)
    assert model.conv2 is old
    for rank, sensitivity in zip(ranks, sensitivities, strict=True):
        model.conv2 = factor(old, "svd", rank)
        with torch.no_grad():
            assert sensitivity == pytest.approx(output_error(seen.output, model(images)), rel=1e-5, abs=1e-9)
        model.conv2 = old


def test_output_error_by_its_definition():
    a, b = torch.randn(5, 3), torch.randn(5, 3)
    mean = a.mean(0)
    expected = sum(float((b[i] - a[i]).square().sum()) for i in range(5)) / sum(
        float((a[i] - mean).square().sum()) for i in range(5)
    )
    assert output_error(a, b) == pytest.approx(expected, rel=1e-5)
    assert output_error(a, a) == 0
    assert output_error(a, mean.expand_as(a)) == pytest.approx(1)
    assert output_error(torch.ones(3, 2), torch.zeros(3, 2)) == float("inf")
