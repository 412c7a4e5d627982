import pytest
import timm
import torch
import torchvision

from convsmith.errors import InvalidArgument
from convsmith.pooling import attach

FAMILIES = [
    ("timm", "resnet10t"),
    ("timm", "mobilenetv2_050"),
    ("timm", "mobilenetv3_small_050"),
    ("timm", "regnetx_002"),
    ("timm", "cs_resnet20"),
    ("torchvision", "resnet18"),
    ("torchvision", "mobilenet_v3_small"),
    ("torchvision", "regnet_x_400mf"),
]


def build(library, name):
    return timm.create_model(name) if library == "timm" else torchvision.models.get_model(name)


@pytest.mark.parametrize(("library", "name"), FAMILIES)
def test_the_map_doubles_and_no_weight_changes(library, name):
    x = torch.randn(1, 3, 96, 96)
    plain, wide = (
        attach(build(library, name), "average", last_stride=stride, input_size=(3, 96, 96)).eval()
        for stride in (None, 1)
    )
    wide.load_state_dict(plain.state_dict(), strict=True)
    small, large = plain.forward_features(x).shape, wide.forward_features(x).shape
    assert large[2:] == (2 * small[2], 2 * small[3])
    assert large[1] == small[1]


@pytest.mark.parametrize("size", [224, 448])
def test_published_grids_of_a_resnet(size):
    model = attach(timm.create_model("resnet18"), "average", last_stride=1).eval()
    with torch.no_grad():
        assert model.forward_features(torch.zeros(1, 3, size, size)).shape[2:] == (size // 16, size // 16)


def test_a_stage_without_stride_is_an_error():
    model = timm.create_model("resnet10t", output_stride=16)
    with pytest.raises(InvalidArgument, match="no stride to remove"):
        attach(model, last_stride=1)
