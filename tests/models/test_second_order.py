import pytest
import timm
import torch
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.models.second_order import convert_fast_mpncov, load_fast_mpncov

COUNTS = {
    "resnet18_isqrt": 44_205_096,
    "resnet34_isqrt": 54_313_256,
    "resnet50_isqrt": 56_929_832,
    "resnet101_isqrt": 75_921_960,
    "vgg16_bn_isqrt": 170_479_144,
}
MEBIBYTES = {"resnet50_isqrt": 217.375, "vgg16_bn_isqrt": 650.36}


@pytest.mark.parametrize("name", list(COUNTS))
def test_published_parameter_counts(name):
    with torch.device("meta"):
        model = timm.create_model(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    if name in MEBIBYTES:
        # the published files are 217.3 and 650.4 MB; batch counters are not in them
        stored = sum(v.numel() * 4 for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked"))
        assert stored / 2**20 == pytest.approx(MEBIBYTES[name], abs=5e-3)


def small(**kwargs):
    return timm.create_model("resnet18_isqrt", num_classes=3, dim=8, **kwargs)


def test_structure_and_arguments():
    model = small(in_chans=1, iterations=3).eval()
    x = torch.randn(1, 1, 64, 64)
    assert model.forward_features(x).shape == (1, 512, 4, 4)
    assert model(x).shape == (1, 3)
    assert model.pooling.iterations == 3
    assert model.default_cfg["input_size"] == (3, 224, 224)
    assert "resnet50_isqrt" in timm.list_models("*_isqrt")


def authors_layout(model):
    """The same weights under the names of fast-MPN-COV's ResNets."""
    renamed = {}
    for key, value in model.state_dict().items():
        key = key.replace("backbone.", "").replace("pooling.reduce.0.", "layer_reduce.")
        key = key.replace("pooling.reduce.1.", "layer_reduce_bn.").replace("classifier.", "fc.")
        renamed[key] = value + 0.01 if value.is_floating_point() else value
    return renamed


def sequential_layout(weights):
    order = ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    out = {}
    for key, value in weights.items():
        head, _, rest = key.partition(".")
        if head in order:
            key = f"features.{order.index(head)}.{rest}"
        key = key.replace("layer_reduce_bn.", "representation.conv_dr_block.1.")
        key = key.replace("layer_reduce.", "representation.conv_dr_block.0.").replace("fc.", "classifier.")
        out[f"module.{key}"] = value
    return out


@pytest.mark.parametrize("layout", ["resnet", "sequential", "checkpoint"])
def test_checkpoints_in_the_authors_naming_load_strictly(layout):
    source, target = small(), small()
    weights = authors_layout(source)
    expected = {k: v + 0.01 if v.is_floating_point() else v for k, v in source.state_dict().items()}
    if layout == "sequential":
        weights = sequential_layout(weights)
    elif layout == "checkpoint":
        weights = {"epoch": 3, "state_dict": {k: v for k, v in weights.items() if "num_batches" not in k}}
    load_fast_mpncov(target, weights)
    for key, value in target.state_dict().items():
        assert_close(value, expected[key], rtol=0, atol=0)


def test_the_vgg_layout_is_known():
    keys = {
        "features.module.0.weight": "backbone.features.0.weight",
        "representation.conv_dr_block.0.weight": "pooling.reduce.0.weight",
        "representation.conv_dr_block.1.running_mean": "pooling.reduce.1.running_mean",
        "classifier.6.bias": "classifier.6.bias",
    }
    converted = convert_fast_mpncov({k: torch.zeros(1) for k in keys}, resnet=False)
    assert set(converted) == set(keys.values())


def test_bad_input():
    model = small()
    weights = authors_layout(model)
    del weights["layer_reduce.weight"]
    with pytest.raises(InvalidArgument, match=r"pooling\.reduce\.0\.weight"):
        load_fast_mpncov(model, weights)
    with pytest.raises(InvalidArgument, match="isqrt networks is needed"):
        load_fast_mpncov(timm.create_model("cs_resnet20"), {})
    with pytest.raises(InvalidArgument, match="pretrained_backbone=True"):
        timm.create_model("resnet18_isqrt", pretrained=True)
    with pytest.raises(InvalidArgument, match="covariance's root"):
        timm.create_model("resnet18_isqrt", global_pool="avg")


def test_features_only_gives_the_backbones_maps():
    model = timm.create_model("resnet18_isqrt", features_only=True, out_indices=(2, 4)).eval()
    maps = model(torch.randn(1, 3, 64, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(128, 8, 8), (512, 4, 4)]
