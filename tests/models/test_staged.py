"""What timm users rely on, for one small network of every lean family."""

import pytest
import timm
import torch

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import cost
from convsmith.errors import InvalidArgument
from convsmith.models.staged import StagedNet, spread

SMALL = [
    "igcv1_small",
    "igcv2_small",
    "igcv3_cifar_small",
    "dmrnet_small",
    "cs_mobilenetv1_small",
    "xception_igc_small",
]


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 11), (2, 32)])
def test_any_channels_classes_and_sizes_from_8(name, channels, size):
    model = timm.create_model(name, in_chans=channels, num_classes=7).eval()
    x = torch.randn(2, channels, size, size)
    with torch.no_grad():
        assert model(x).shape == (2, 7)
        features = model.forward_features(x)
    assert features.shape == (2, model.num_features, -(-size // 4), -(-size // 4))


@pytest.mark.parametrize("name", SMALL)
def test_timm_conventions(name):
    model = timm.create_model(name)
    assert isinstance(model, StagedNet)
    assert model.default_cfg["input_size"] == (3, 32, 32)
    assert model.get_classifier() is model.fc
    assert model.get_classifier(name_only=True) == "fc"
    stem = dict(model.named_modules())[model.default_cfg["first_conv"]]
    assert stem.in_channels == 3
    x = torch.randn(2, 3, 8, 8)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, model.num_features)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, model.num_features)
    model.reset_classifier(4, "max")
    assert model(x).shape == (2, 4)
    assert name in timm.list_models(name)
    listed = timm.create_model(name, features_only=True)
    shapes = [(f.shape[1], 8 // f.shape[2]) for f in listed(x)]
    assert shapes == list(zip(listed.feature_info.channels(), listed.feature_info.reduction(), strict=True))


@pytest.mark.parametrize("name", SMALL)
def test_small_networks_stay_within_their_budget(name):
    with torch.device("meta"):
        result = cost(timm.create_model(name), (3, 32, 32))
    assert 20_000 <= result.params <= 300_000


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter_also_when_recomputed(name):
    torch.manual_seed(1)
    model = timm.create_model(name).double().train()
    x = torch.randn(3, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    assert all(g.abs().sum() > 0 for g in gradients[0])
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SMALL)
def test_export_agrees_and_holds_no_gather(name):
    model = timm.create_model(name).eval()
    x = torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (x,))
    kinds = {str(node.target) for node in program.graph.nodes}
    assert not any("index" in kind or "gather" in kind for kind in kinds)
    torch.testing.assert_close(program.module()(x), model(x), rtol=1e-4, atol=1e-5)


def test_blocks_are_spread_and_weights_are_not_pretended():
    assert spread(8, 3) == (2, 3, 3)
    assert spread(9, 3) == (3, 3, 3)
    assert spread(7, 3) == (2, 2, 3)
    with pytest.raises(InvalidArgument, match="no published weights"):
        timm.create_model("igcv1_small", pretrained=True)
