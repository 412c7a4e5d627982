import pytest
import timm
import torch
from torch import nn

import convsmith  # noqa: F401  (registers our models)
from convsmith.errors import InvalidArgument
from convsmith.models.residual import CifarResNet, PadShortcut


def count(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize(
    ("name", "published"),
    [("cs_resnet20", 269_722), ("cs_resnet32", 464_154), ("cs_resnet44", 658_586), ("cs_resnet56", 853_018)],
)
def test_parameter_counts_equal_the_published_ones(name, published):
    assert count(timm.create_model(name, num_classes=10)) == published


@pytest.mark.parametrize(("depth", "width", "classes", "channels"), [(8, 4, 3, 1), (14, 16, 10, 3), (20, 5, 7, 2)])
def test_parameter_count_follows_the_closed_formula(depth, width, classes, channels):
    n = (depth - 2) // 6
    expected = 9 * channels * width + 2 * width  # stem
    before = width
    for out in (width, 2 * width, 4 * width):
        expected += 9 * before * out + 9 * out * out + 4 * out + (n - 1) * (18 * out * out + 4 * out)
        before = out
    expected += 4 * width * classes + classes
    assert count(CifarResNet(depth, width, num_classes=classes, in_chans=channels)) == expected


@pytest.mark.parametrize(("channels", "size"), [(1, 8), (3, 8), (3, 9), (4, 17), (1, 28), (3, 32)])
def test_any_channels_classes_and_sizes_from_8(channels, size):
    model = timm.create_model("cs_resnet20", in_chans=channels, num_classes=7, width=4).eval()
    x = torch.randn(2, channels, size, size)
    assert model(x).shape == (2, 7)
    assert model.forward_features(x).shape == (2, 16, -(-size // 4), -(-size // 4))


def test_pad_shortcut_is_option_a():
    x = torch.randn(2, 4, 5, 5)
    y = PadShortcut(4, 8, 2)(x)
    assert y.shape == (2, 8, 3, 3)
    torch.testing.assert_close(y[:, 2:6], x[:, :, ::2, ::2], rtol=0, atol=0)
    assert not y[:, :2].any()
    assert not y[:, 6:].any()


def test_forward_matches_a_naive_evaluation():
    """Blocks written out formula by formula, float64."""
    model = CifarResNet(8, 3, num_classes=5).double().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.running_mean.normal_()
            m.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 10, 10, dtype=torch.float64)

    def bn(m, z):
        scale = m.weight / torch.sqrt(m.running_var + m.eps)
        return z * scale[:, None, None] + (m.bias - m.running_mean * scale)[:, None, None]

    def conv(m, z, stride=1):
        return torch.nn.functional.conv2d(z, m.weight, None, stride, 1)

    h = bn(model.bn1, conv(model.conv1, x)).clamp(min=0)
    for stage in (1, 2, 3):
        (block,) = getattr(model, f"layer{stage}")
        stride = 1 if stage == 1 else 2
        y = bn(block.conv1 and block.bn1, conv(block.conv1, h, stride)).clamp(min=0)
        y = bn(block.bn2, conv(block.conv2, y))
        if stage > 1:
            zeros = torch.zeros_like(y)
            half = (y.shape[1] - h.shape[1]) // 2
            zeros[:, half : half + h.shape[1]] = h[:, :, ::2, ::2]
            h = zeros
        h = (y + h).clamp(min=0)
    logits = h.mean((2, 3)) @ model.fc.weight.T + model.fc.bias
    torch.testing.assert_close(model(x), logits, rtol=1e-10, atol=1e-10)


def test_timm_conventions():
    model = timm.create_model("cs_resnet20", width=4)
    assert model.num_features == model.head_hidden_size == 16
    assert model.get_classifier() is model.fc
    assert model.get_classifier(name_only=True) == "fc"
    assert model.default_cfg["input_size"] == (3, 32, 32)
    x = torch.randn(2, 3, 16, 16)
    assert model.forward_head(model.forward_features(x), pre_logits=True).shape == (2, 16)
    model.reset_classifier(3)
    assert model(x).shape == (2, 3)
    model.reset_classifier(0)
    assert model(x).shape == (2, 16)
    model.reset_classifier(4, "max")
    assert model.num_classes == 4
    assert model(x).shape == (2, 4)
    assert "cs_resnet20" in timm.list_models("cs_*")
    features = timm.create_model("cs_resnet20", width=4, features_only=True)
    assert [tuple(f.shape[1:]) for f in features(x)] == [(4, 16, 16), (4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert features.feature_info.reduction() == [1, 1, 2, 4]


def test_checkpointed_gradients_equal_plain_ones():
    torch.manual_seed(3)
    model = timm.create_model("cs_resnet20", width=2, depth=8).double().train()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    gradients = []
    for enable in (False, True):
        model.zero_grad()
        model.set_grad_checkpointing(enable)
        model(x).square().sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients, rtol=1e-10, atol=1e-10)


def test_conv_shortcut_and_group_norm_variants_run():
    model = CifarResNet(8, 4, shortcut="conv", norm_layer=lambda c: nn.GroupNorm(2, c), drop_rate=0.3)
    assert isinstance(model.layer2[0].shortcut, nn.Sequential)
    assert model(torch.randn(1, 3, 8, 8)).shape == (1, 10)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"depth": 21}, "6n \\+ 2"),
        ({"depth": 2}, "6n \\+ 2"),
        ({"width": 0}, "at least 1"),
        ({"shortcut": "padd"}, "did you mean 'pad'"),
        ({"pretrained": True}, "no published weights"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidArgument, match=message):
        timm.create_model("cs_resnet20", **arguments)


def test_compile_and_export_agree_with_eager():
    model = timm.create_model("cs_resnet20", width=2, depth=8).eval()
    x = torch.randn(2, 3, 8, 8)
    exported = torch.export.export(model, (x,)).module()
    torch.testing.assert_close(exported(x), model(x), rtol=1e-5, atol=1e-5)
