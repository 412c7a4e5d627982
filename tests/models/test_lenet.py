import pytest
import timm
import torch
from torch.nn import functional as F

import convsmith  # noqa: F401  (registers our models)
from convsmith.errors import InvalidArgument


def test_parameter_count_follows_from_the_widths():
    model = timm.create_model("cs_lenet", num_classes=10)
    assert sum(p.numel() for p in model.parameters()) == 80 + 1168 + 256 * 64 + 64 + 650 == 18_346


def test_forward_is_the_formula():
    model = timm.create_model("cs_lenet", num_classes=7, in_chans=3).double()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    h = F.max_pool2d(F.relu(F.conv2d(x, model.conv1.weight, model.conv1.bias, padding=1)), 2)
    h = F.max_pool2d(F.relu(F.conv2d(h, model.conv2.weight, model.conv2.bias, padding=1)), 2).flatten(1)
    features = F.relu(h @ model.hidden.weight.T + model.hidden.bias)
    torch.testing.assert_close(model.forward_head(model.forward_features(x), pre_logits=True), features)
    torch.testing.assert_close(model(x), features @ model.fc.weight.T + model.fc.bias)


@pytest.mark.parametrize("size", [8, 13, 16, 28])
def test_any_size_from_8_and_a_new_classifier(size):
    model = timm.create_model("cs_lenet", in_chans=1).eval()
    assert model(torch.rand(2, 1, size, size)).shape == (2, 10)
    model.reset_classifier(4)
    assert model(torch.rand(2, 1, size, size)).shape == (2, 4)
    assert model.get_classifier().out_features == 4


def test_it_has_no_published_weights():
    with pytest.raises(InvalidArgument, match="no published weights"):
        timm.create_model("cs_lenet", pretrained=True)
