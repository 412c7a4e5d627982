"""Counts of the IGCV2 reconstructions and their chains."""

import pytest
import timm
import torch

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import InterleavedStructuredConv2d, condition, cost
from convsmith.errors import InvalidArgument
from convsmith.models.igcv2 import igcv2_cifar, igcv2_imagenet


@pytest.mark.parametrize(("widen", "conv", "total"), [("pointwise", 436_800, 639_076), ("depthwise", 448_032, 650_308)])
def test_c416_reconstruction(widen, conv, total):
    with torch.device("meta"):
        model = igcv2_cifar(widen=widen)
    result = cost(model, (3, 32, 32))
    assert (result.params_as("conv"), result.params) == (conv, total)
    assert result.params - result.params_as("no-norm") == 35_776
    assert model.fc.weight.numel() == 166_400


def test_three_factors_reach_the_other_printed_size():
    with torch.device("meta"):
        hundred, ten = igcv2_cifar(factors=3), igcv2_cifar(factors=3, num_classes=10)
    assert round(sum(p.numel() for p in hundred.parameters()) / 1e6, 2) == 0.78
    assert round(sum(p.numel() for p in ten.parameters()) / 1e6, 2) == 0.63


@pytest.mark.parametrize(
    ("name", "params"),
    [("igcv2_c416_d20", 639_076), ("igcv2_small", 51_082), ("igcv2_s100", 1_352_040), ("igcv2_s200", 2_888_424)],
)
def test_registered_names(name, params):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params
    assert f"{params:,}" in timm.model_entrypoint(name).__doc__


def test_the_imagenet_plan_is_strictly_complementary():
    with torch.device("meta"):
        model = igcv2_imagenet(0.5, factors=3)
    chains = [m for m in model.modules() if isinstance(m, InterleavedStructuredConv2d)]
    assert len(chains) == 13
    for chain in chains:
        assert condition(chain).strict, chain


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": 9}, "8 or 11"),
        ({"widen": "both"}, "widen"),
        ({"channels": 36}, r"8 to divide 36[\s\S]*6 or 9"),
    ],
)
def test_bad_arguments(settings, words):
    with pytest.raises(InvalidArgument, match=words):
        igcv2_cifar(**settings)
