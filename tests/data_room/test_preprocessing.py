import json
import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config, resolve_model_data_config

import convsmith  # noqa: F401  (registers our models)
from convsmith.data.preprocessing import Preprocessing
from convsmith.errors import InvalidArgument

CONFIGURATIONS = [
    {},
    {"input_size": (3, 160, 160), "interpolation": "bilinear", "crop_pct": 1.0},
    {"input_size": (3, 96, 128), "crop_pct": 0.9},
    {"input_size": (3, 64, 64), "crop_mode": "squash", "crop_pct": 0.95},
    {"input_size": (3, 64, 64), "crop_mode": "border", "crop_pct": 1.0},
    {"input_size": (1, 32, 32), "mean": (0.4,), "std": (0.2,), "crop_pct": 1.0, "interpolation": "nearest"},
]


def pictures(mode):
    rng = np.random.default_rng(3)
    for height, width in ((70, 90), (300, 111), (33, 32)):
        yield Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8)).convert(mode)


@pytest.mark.parametrize("fields", CONFIGURATIONS)
def test_the_transform_is_timms_evaluation_path_bit_for_bit(fields):
    ours = Preprocessing(**fields)
    theirs = create_transform(**ours.to_json(), is_training=False)
    for image in pictures("L" if ours.channels == 1 else "RGB"):
        found = ours.transform()(image)
        assert found.shape == ours.input_size
        assert torch.equal(found, theirs(image))


def test_other_kinds_of_pictures_are_converted():
    image = next(pictures("P"))
    colour, grey = Preprocessing().transform(), Preprocessing((1, 32, 32), mean=(0.5,), std=(0.5,)).transform()
    assert torch.equal(colour(image), colour(image.convert("RGB")))
    assert torch.equal(grey(image), grey(image.convert("L")))


@pytest.mark.parametrize("name", ["cs_resnet20", "resnet18_isqrt", "tf_efficientnet_lite0", "vit_tiny_patch16_224"])
def test_the_configuration_of_a_network_is_what_timm_resolves(name):
    model = timm.create_model(name)
    found = Preprocessing.from_model(model)
    assert found == Preprocessing(**resolve_model_data_config(model))
    assert Preprocessing.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_other_channels_take_the_mean_of_the_normalisation():
    found = Preprocessing.from_model(timm.create_model("cs_resnet20", in_chans=1))
    assert found.input_size == (1, 32, 32)
    assert found.mean == pytest.approx(((0.4914 + 0.4822 + 0.4465) / 3,))


def test_a_network_without_a_configuration_gets_the_defaults():
    assert Preprocessing.from_model(torch.nn.Conv2d(3, 4, 3)) == Preprocessing()


@pytest.mark.parametrize("name", ["ResNet50_Weights.IMAGENET1K_V1", "ResNet50_Weights.IMAGENET1K_V2"])
def test_torchvisions_transforms_are_the_same(name):
    from torchvision.models import get_weight

    theirs = get_weight(name).transforms()
    ours = Preprocessing.from_torchvision(theirs).transform()
    for image in pictures("RGB"):
        assert torch.equal(ours(image), theirs(image))


def test_a_transform_goes_to_worker_processes():
    transform = Preprocessing((3, 32, 32)).transform()
    image = next(pictures("RGB"))
    assert torch.equal(pickle.loads(pickle.dumps(transform))(image), transform(image))


@pytest.mark.parametrize(
    ("fields", "argument"),
    [
        ({"input_size": (32, 32)}, "input_size"),
        ({"input_size": (3, 0, 32)}, "input_size"),
        ({"input_size": (3, 1e99, 32)}, "input_size"),
        ({"input_size": "332"}, "input_size"),
        ({"input_size": None}, "input_size"),
        ({"mean": (0.5, 0.5)}, "mean"),
        ({"mean": (0.5, float("nan"), 0.5)}, "mean"),
        ({"std": (0.0, 1.0, 1.0)}, "std"),
        ({"crop_pct": 0}, "crop_pct"),
        ({"crop_pct": "1"}, "crop_pct"),
        ({"interpolation": "cubic"}, "interpolation"),
        ({"interpolation": ["cubic"]}, "interpolation"),
        ({"crop_mode": None}, "crop_mode"),
        ({"crop": 1}, "preprocessing"),
    ],
)
def test_bad_fields_are_named(fields, argument):
    with pytest.raises(InvalidArgument) as caught:
        Preprocessing.from_json(fields)
    assert caught.value.argument == argument


def test_only_a_mapping_is_read():
    with pytest.raises(InvalidArgument, match="mapping"):
        Preprocessing.from_json([1])


NETWORKS = (
    "resnet50",
    "tf_efficientnet_lite0",
    "vit_base_patch16_224",
    "convnext_tiny",
    "swin_tiny_patch4_window7_224",
    "mobilenetv3_large_100",
    "inception_v3",
    "efficientnet_b3",
    "vgg16_bn",
    "beit_base_patch16_224",
)


def photographs(count):
    """Cut windows of many sizes from sample photographs, in the modes that timm reads as colour without losing any."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    whole = [*load_sample_images().images, data.astronaut(), data.chelsea(), data.coffee()]
    draw = np.random.default_rng(0)
    for number in range(count):
        source = whole[number % len(whole)]
        height, width = (int(draw.integers(40, side + 1)) for side in source.shape[:2])
        top, left = (
            int(draw.integers(0, side - n + 1)) for side, n in zip(source.shape, (height, width), strict=False)
        )
        cut = Image.fromarray(np.ascontiguousarray(source[top : top + height, left : left + width]))
        yield cut.convert(("RGB", "L", "LA", "P", "CMYK", "RGBA")[number % 6])


@pytest.mark.slow
def test_200_pictures_through_ten_networks_are_timms_bit_for_bit(tmp_path):
    """Opaque alpha and upright EXIF: what is transparent is composed on white and turned here, and not by timm."""
    paths = []
    for number, image in enumerate(photographs(200)):
        paths.append(tmp_path / f"{number:03d}.{'jpg' if image.mode in ('RGB', 'L', 'CMYK') else 'png'}")
        exif = Image.Exif()
        exif[0x0112] = 1
        image.save(paths[-1], exif=exif)
    for name in NETWORKS:
        config = resolve_data_config(pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
        ours, theirs = Preprocessing(**config).transform(), create_transform(**config, is_training=False)
        for path in paths:
            with Image.open(path) as one, Image.open(path) as other:
                assert torch.equal(ours(one), theirs(other.convert("RGB"))), f"{name}, {path.name}"


def test_a_name_has_no_preprocessing():
    with pytest.raises(InvalidArgument, match="create_model"):
        Preprocessing.from_model("resnet18")
