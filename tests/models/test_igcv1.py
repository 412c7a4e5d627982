"""Every published count of the IGCV1 networks and their regular controls, and the networks' structure."""

import pytest
import timm
import torch

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import InterleavedGroupConv2d, condition, cost
from convsmith.errors import InvalidArgument
from convsmith.models.igcv1 import igcv1_imagenet, igcv1_net


def counted(builder, size, **settings):
    with torch.device("meta"):
        model = builder(**settings)
    result = cost(model, size)
    affine = sum(layer.norm for layer in result.by_layer.values())
    return result.params_as("conv"), affine, model.fc.weight.numel(), result.params, result.macs


REGULAR_16, REGULAR_18 = {"primary": None, "width": 16}, {"primary": None, "width": 18}
L4M8, L24M2 = {"primary": 4, "members": 8}, {"primary": 24, "members": 2}


@pytest.mark.parametrize(
    ("depth", "net", "conv", "norm", "classifier", "total", "mega"),
    [
        (8, REGULAR_16, 74_160, 480, 640, 75_290, 12.24),
        (8, REGULAR_18, 93_798, 540, 720, 95_068, 15.43),
        (8, L4M8, 76_384, 960, 1_280, 78_634, 13.14),
        (8, L24M2, 45_072, 1_440, 1_920, 48_442, 9.88),
        (20, REGULAR_16, 267_696, 1_376, 640, 269_722, 40.55),
        (20, REGULAR_18, 338_742, 1_548, 720, 341_020, 51.26),
        (20, L4M8, 273_504, 2_752, 1_280, 277_546, 42.37),
        (20, L24M2, 149_904, 4_128, 1_920, 155_962, 28.76),
        (38, REGULAR_16, 558_000, 2_720, 640, 561_370, 83.02),
        (38, REGULAR_18, 706_158, 3_060, 720, 709_948, 105.01),
        (38, L4M8, 569_184, 5_440, 1_280, 575_914, 86.21),
        (38, L24M2, 307_152, 8_160, 1_920, 317_242, 57.07),
        (62, REGULAR_16, 945_072, 4_512, 640, 950_234, 139.64),
        (62, REGULAR_18, 1_196_046, 5_076, 720, 1_201_852, 176.67),
        (62, L4M8, 963_424, 9_024, 1_280, 973_738, 144.67),
        (62, L24M2, 516_816, 13_536, 1_920, 532_282, 94.82),
    ],
)
def test_plain_cifar_networks(depth, net, conv, norm, classifier, total, mega):
    *params, macs = counted(igcv1_net, (3, 32, 32), depth=depth, **net)
    assert params == [conv, norm, classifier, total]
    assert round(macs / 1e6, 2) == mega


@pytest.mark.parametrize(
    ("depth", "primary", "members", "conv", "total", "macs", "consistent_total", "consistent_macs"),
    [
        (20, 4, 8, 276_832, 281_258, 42_730_752, 280_490, 42_632_448),
        (20, 24, 2, 157_776, 164_410, 29_738_880, 157_498, 28_854_144),
        (38, 24, 2, 315_024, 325_690, 58_050_432, 318_778, 57_165_696),
        (50, 24, 2, 419_856, 433_210, 76_924_800, 426_298, 76_040_064),
        (62, 24, 2, 524_688, 540_730, 95_799_168, 533_818, 94_914_432),
        (20, 16, 32, 17_675_776, 17_746_442, 2_692_239_360, 17_697_290, 2_685_947_904),
        (20, 32, 26, 24_100_544, 24_215_370, 3_741_024_768, 24_055_626, 3_720_577_536),
        (20, 450, 2, 21_361_500, 21_485_710, 4_974_372_000, 19_055_710, 4_663_332_000),
    ],
)
def test_residual_cifar_networks(depth, primary, members, conv, total, macs, consistent_total, consistent_macs):
    settings = {"depth": depth, "primary": primary, "members": members, "residual": True}
    authors = counted(igcv1_net, (3, 32, 32), **settings)
    assert (authors[0], *authors[3:]) == (conv, total, macs)
    consistent = counted(igcv1_net, (3, 32, 32), widening="consistent", **settings)
    assert consistent[3:] == (consistent_total, consistent_macs)


@pytest.mark.parametrize(
    ("settings", "conv", "norm", "classifier", "total", "mega"),
    [
        ({"primary": None, "width": 64}, 11_166_912, 9_600, 512_000, 11_689_512, 1_814.07),
        ({"primary": None, "width": 69}, 12_979_107, 10_350, 552_000, 13_542_457, 2_098.61),
        ({"primary": 4, "members": 32, "grow": "members"}, 11_207_040, 19_200, 1_024_000, 12_251_240, 1_944.64),
        ({"primary": 16, "members": 16, "grow": "members"}, 11_440_896, 38_400, 2_048_000, 13_528_296, 2_265.99),
        ({}, 7_006_700, 30_200, 1_600_000, 8_637_900, 1_264.78),
    ],
)
def test_imagenet_networks(settings, conv, norm, classifier, total, mega):
    *params, macs = counted(igcv1_imagenet, (3, 224, 224), **settings)
    assert params == [conv, norm, classifier, total]
    assert round(macs / 1e6, 2) == mega


def test_the_printed_size_of_l100m2_is_convolutions_and_classifier_weights():
    with torch.device("meta"):
        result = cost(timm.create_model("igcv1_l100m2"), (3, 224, 224))
    assert result.params_as("weights") == 8_606_700


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("igcv1_l4m8_d20", 277_546),
        ("igcv1_l24m2_d20", 155_962),
        ("igcv1_l24m2_d38", 317_242),
        ("igcv1_l24m2_d20_ident", 164_410),
        ("igcv1_l24m2_d50_ident", 433_210),
        ("igcv1_l16m32_d20_ident", 17_746_442),
        ("igcv1_small", 103_738),
        ("igcv1_l100m2", 8_637_900),
        ("igcv1_l16m16", 13_528_296),
        ("igcv1_l4m32", 12_251_240),
    ],
)
def test_registered_names(name, params):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == params
    assert f"{params:,}" in timm.model_entrypoint(name).__doc__


def test_paths_where_a_stage_widens():
    for widening, paths in (("authors", 2), ("consistent", 1)):
        model = igcv1_net(8, 4, 2, residual=True, widening=widening)
        chains = [m for m in model.modules() if isinstance(m, InterleavedGroupConv2d)]
        assert {condition(chain).most for chain in chains} == {1, paths}
        assert {condition(chain).fewest for chain in chains} == {1, paths}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"depth": 9}, r"3n \+ 2[\s\S]*8 or 11"),
        ({"depth": 21, "residual": True}, r"2n \+ 2[\s\S]*20 or 22"),
        ({"depth": 3}, r"5 or 8"),
        ({"primary": None}, "width"),
        ({"widening": "none"}, "widening"),
    ],
)
def test_bad_arguments(settings, words):
    with pytest.raises(InvalidArgument, match=words):
        igcv1_net(**settings)


def test_bad_imagenet_arguments():
    with pytest.raises(InvalidArgument, match="members"):
        igcv1_imagenet(grow="both")
    with pytest.raises(InvalidArgument, match="width"):
        igcv1_imagenet(primary=None)
