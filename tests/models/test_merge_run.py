"""Published counts of merge-and-run networks and the ResNet-98 beside them."""

import pytest
import timm
import torch
from timm.models.resnet import Bottleneck, ResNet

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import cost
from convsmith.errors import InvalidArgument
from convsmith.models.merge_run import dmrnet


@pytest.mark.parametrize(
    ("name", "settings", "params"),
    [
        ("dmrnet56", {}, 1_710_426),
        ("dmrnet56", {"num_classes": 100}, 1_716_276),
        ("dmrnet32_w4", {}, 14_851_402),
        ("dmrnet50_w4", {}, 24_151_882),
        ("dmrnet_small", {}, 154_970),
        ("dmrnet50_imagenet", {}, 46_395_048),
    ],
)
def test_published_counts(name, settings, params):
    with torch.device("meta"):
        model = timm.create_model(name, **settings)
    assert sum(p.numel() for p in model.parameters()) == params
    if not settings:
        assert f"{params:,}" in timm.model_entrypoint(name).__doc__


def test_parts_of_the_imagenet_network():
    with torch.device("meta"):
        result = cost(timm.create_model("dmrnet50_imagenet"), (3, 224, 224))
        resnet98 = ResNet(Bottleneck, [2, 4, 22, 4])
    assert result.params_as("conv") == 42_198_208
    assert sum(layer.norm for layer in result.by_layer.values()) == 99_840
    assert result.by_layer["fc"].params == 4_097_000
    # the authors' ResNet-98 has, like their merge-and-run network, no projections and no norm behind the stem
    own = [p.numel() for name, p in resnet98.named_parameters() if "downsample" not in name and name[:4] != "bn1."]
    assert sum(own) == 45_047_464


def test_streams_start_equal_and_the_last_block_joins_them():
    model = dmrnet(8).eval()
    x = torch.randn(2, 3, 8, 8)
    first, second = model.stem(x).chunk(2, 1)
    assert torch.equal(first, second)
    assert model.forward_features(x).shape == (2, 64, 2, 2)


def test_bad_depth():
    with pytest.raises(InvalidArgument, match=r"6n \+ 2[\s\S]*8 or 14"):
        dmrnet(9)
