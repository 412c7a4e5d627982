"""Every published count of IGCV3 that follows from a layer table, and the flags."""

import pytest
import timm
import torch

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import cost
from convsmith.errors import InvalidArgument
from convsmith.models.igcv3 import WIDE, igcv3_net


def counted(size=(3, 224, 224), **settings):
    with torch.device("meta"):
        model = igcv3_net(**settings)
    result = cost(model, size)
    return result.params, round(result.macs / 1e6, 1)


@pytest.mark.parametrize(
    ("settings", "params", "mega"),
    [
        ({}, 3_491_688, 313.0),
        ({"groups": (2, 4)}, 3_063_304, 255.8),
        ({"groups": (4, 4)}, 2_687_496, 192.5),
        ({"groups": (1, 1)}, 5_100_072, 553.8),
        ({"rows": WIDE}, 5_724_968, 585.8),
        ({"width": 0.7}, 2_502_486, 174.6),
        ({"width": 1.4}, 6_023_004, 590.0),
    ],
)
def test_imagenet_networks(settings, params, mega):
    assert counted(**settings) == (params, mega)


@pytest.mark.parametrize(
    ("width", "params"), [(1.0, 3_491_688), (0.75, 2_638_084), (0.5, 1_985_528), (0.25, 1_534_020)]
)
def test_the_truncating_multiplier_of_the_other_port(width, params):
    assert counted(width=width, multiplier="truncating")[0] == params


def test_the_exact_macs_of_the_published_network():
    with torch.device("meta"):
        assert cost(igcv3_net(), (3, 224, 224)).macs == 312_970_176


def test_the_authors_multiplier_differs_only_away_from_one():
    assert counted(multiplier="authors") == counted()
    for width, fixed in ((0.7, 2_502_486), (1.4, 6_023_004)):
        params, _ = counted(width=width, multiplier="authors")
        assert params != fixed
        assert (params > fixed) == (width > 1)


@pytest.mark.parametrize(("classes", "params"), [(10, 2_223_498), (100, 2_338_788)])
def test_cifar_networks(classes, params):
    with torch.device("meta"):
        model = timm.create_model("igcv3_cifar", num_classes=classes)
    assert sum(p.numel() for p in model.parameters()) == params
    assert model.feature_info[-1]["reduction"] == 4


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("igcv3_d_070", 2_502_486),
        ("igcv3_d_100", 3_491_688),
        ("igcv3_d_140", 6_023_004),
        ("igcv3_w_100", 5_724_968),
        ("igcv3_cifar", 2_223_498),
        ("igcv3_cifar_small", 62_778),
    ],
)
def test_registered_names(name, params):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params
    assert f"{params:,}" in timm.model_entrypoint(name).__doc__


def test_flags_change_the_function_and_not_the_size():
    x = torch.randn(2, 3, 8, 8)
    outputs = []
    for flags in ({}, {"expand_activation": True}, {"permute_out": True}):
        torch.manual_seed(0)
        model = timm.create_model("igcv3_cifar_small", **flags).eval()
        assert sum(p.numel() for p in model.parameters()) == 62_778
        outputs.append(model(x))
    assert not torch.allclose(outputs[0], outputs[1])
    assert not torch.allclose(outputs[0], outputs[2])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"multiplier": "odd"}, "multiplier"),
        ({"width": 0.0}, "width must be a finite number above 0"),
        ({"groups": (5, 2)}, r"5 to divide 32"),
    ],
)
def test_bad_arguments(settings, words):
    with pytest.raises(InvalidArgument, match=words):
        igcv3_net(**settings)
