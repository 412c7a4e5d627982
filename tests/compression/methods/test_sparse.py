"""Patterns of zeros by their definitions."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convsmith.compression import compress, plan_compression
from convsmith.compression.methods.sparse import mask


@given(st.integers(1, 60), st.floats(0, 0.99), st.integers(0, 99))
def test_exactly_the_smallest_go(count, sparsity, seed):
    weight = torch.randn(count, 1, generator=torch.Generator().manual_seed(seed))
    keep = mask(weight, {"sparsity": sparsity})
    assert int((~keep).sum()) == round(sparsity * count)
    if keep.any() and not keep.all():
        assert weight[keep].abs().min() >= weight[~keep].abs().max()


@pytest.mark.parametrize("shape", [(5, 8), (3, 8, 3, 3)])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 8), (4, 4)])
def test_n_of_m_input_channels(shape, n, m):
    weight = torch.randn(shape)
    keep = mask(weight, {"n": n, "m": m})
    flat = keep.reshape(shape[0], shape[1], -1)
    values = weight.reshape(shape[0], shape[1], -1).abs()
    for o in range(shape[0]):
        for start in range(0, shape[1], m):
            for tap in range(flat.shape[2]):
                kept = flat[o, start : start + m, tap]
                assert int(kept.sum()) == n
                group = values[o, start : start + m, tap]
                assert set(group[kept].tolist()) == set(group.topk(n).values.tolist())


def test_blocks_by_norm():
    weight = torch.randn(6, 5, 3, 3)
    keep = mask(weight, {"block": [2, 2], "sparsity": 0.5})
    norms = {
        (i, j): float(weight[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].square().sum()) for i in range(3) for j in range(3)
    }
    gone = sorted(norms, key=norms.get)[: round(0.5 * 9)]
    for i, j in norms:
        assert bool(keep[2 * i : 2 * i + 2, 2 * j : 2 * j + 2].any()) == ((i, j) not in gone)


def test_plan_counts_are_the_non_zeros_of_the_result(Plain, settled):
    images = torch.randn(8, 1, 8, 8)
    model = settled(Plain(), images)
    with torch.no_grad():
        model.conv2.weight[:4] = 0
    for method, settings in (("sparse", {"sparsity": 0.1}), ("sparse", {"sparsity": 0.7}), ("structured-sparse", {})):
        plan = plan_compression(model, method, example=images, **settings)
        made = compress(model, method, example=images, **settings)
        for choice in plan.choices:
            layer = made.get_submodule(choice.layer)
            used = int(torch.count_nonzero(layer.weight)) + (0 if layer.bias is None else layer.bias.numel())
            assert choice.params[1] == used


def test_layers_that_do_not_fit_a_pattern_say_so():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    plan = plan_compression(model, "structured-sparse", example=torch.randn(1, 3, 8, 8))
    assert "not a multiple of 4" in plan.skipped["0"]
    plan = plan_compression(
        model, "structured-sparse", example=torch.randn(1, 3, 8, 8), pattern="block", block=(8, 8), sparsity=0.5
    )
    assert "single block" in plan.skipped["1"]


def test_in_a_transposed_convolution_the_pattern_runs_along_the_outputs():
    model = nn.Sequential(nn.ConvTranspose2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3))
    example = torch.randn(1, 3, 4, 4)
    assert (
        "6 output channels per group are not a multiple of 4"
        in plan_compression(model, "structured-sparse", example=example).skipped["1"]
    )
    weight = compress(model, "structured-sparse", example=example)[0].weight  # [in, out, taps]
    assert bool(((weight != 0).reshape(3, 2, 4, 9).sum(2) == 2).all())
