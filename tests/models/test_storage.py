import json
from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import compress, compression_history
from convsmith.data import DataDescription
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.models.storage import ModelRecipe, build, load_model, save_model

SMALL = {"width": 2, "depth": 8, "in_chans": 1, "num_classes": 3}
DESCRIPTION = json.loads(json.dumps(DataDescription("shapes", ("a", "b", "c"), 1, (8, 8), (0.5,), (0.2,)).to_json()))


def saved(folder, **changes):
    torch.manual_seed(4)
    recipe = ModelRecipe("cs_resnet20", {**SMALL, **changes}, description=DESCRIPTION)
    model = build(recipe).eval()
    return model, recipe, save_model(folder, model, recipe)


def test_round_trip_by_folder_and_by_file(tmp_path):
    model, recipe, file = saved(tmp_path / "run")
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["model.json", "model.safetensors"]
    x = torch.randn(2, 1, 8, 8)
    for spec in (tmp_path / "run", str(file)):
        loaded = load_model(spec)
        assert loaded.recipe == replace(recipe, preprocessing=loaded.preprocessing.to_json())
        assert loaded.description == DESCRIPTION
        assert not loaded.model.training
        torch.testing.assert_close(loaded.model(x), model(x), rtol=0, atol=0)
    assert load_model(tmp_path / "run", num_classes=3, in_chans=1).recipe == loaded.recipe


def test_a_timm_name_takes_classes_channels_and_its_own_arguments():
    loaded = load_model("cs_resnet20", num_classes=4, in_chans=2, width=3)
    assert loaded.description is None
    assert loaded.recipe.kwargs == {"num_classes": 4, "in_chans": 2, "width": 3}
    assert loaded.model(torch.randn(1, 2, 8, 8)).shape == (1, 4)
    assert load_model("resnet18", num_classes=5).model.fc.out_features == 5


def test_a_weights_file_alone_needs_a_name(tmp_path):
    model, _, _ = saved(tmp_path / "run")
    file = tmp_path / "bare.safetensors"
    save_file(model.state_dict(), file)
    with pytest.raises(InvalidArgument, match="needs its recipe beside it"):
        load_model(file)
    x = torch.randn(2, 1, 8, 8)
    named = load_model("cs_resnet20", weights=file, **SMALL)
    torch.testing.assert_close(named.model(x), model(x), rtol=0, atol=0)


def test_pooling_and_compression_are_rebuilt_in_this_order(tmp_path, monkeypatch):
    calls = []

    def attach(model, pooling, **settings):
        calls.append(("attach", pooling, settings))
        return model

    def restore_structure(model, history):
        calls.append(("restore_structure", history))
        return model

    import convsmith.compression
    import convsmith.pooling

    monkeypatch.setattr(convsmith.pooling, "attach", attach, raising=False)
    monkeypatch.setattr(convsmith.compression, "restore_structure", restore_structure, raising=False)
    recipe = ModelRecipe(
        "cs_resnet20",
        SMALL,
        pooling={"pooling": "isqrt-cov", "dim": 8},
        compression=[{"method": "low-rank", "keep": 0.5}],
    )
    save_model(tmp_path, build(recipe), recipe)
    calls.clear()
    assert replace(load_model(tmp_path).recipe, preprocessing=None) == recipe
    assert calls == [
        ("attach", "isqrt-cov", {"dim": 8}),
        ("restore_structure", [{"method": "low-rank", "keep": 0.5}]),
    ]


def test_weights_of_another_model_name_the_first_differing_tensors(tmp_path):
    _, _, file = saved(tmp_path)
    recipe = json.loads((tmp_path / "model.json").read_text())
    recipe["kwargs"]["width"] = 3
    (tmp_path / "model.json").write_text(json.dumps(recipe))
    with pytest.raises(InvalidArgument, match=r"conv1\.weight is \(2, 1, 3, 3\) in the file and \(3, 1, 3, 3\)"):
        load_model(tmp_path)
    with pytest.raises(InvalidArgument, match="belong to another model"):
        load_model("resnet18", weights=file)


@pytest.mark.parametrize(
    ("spec", "arguments", "message"),
    [
        ("cs_resnet2", {}, "did you mean .*'cs_resnet20'"),
        ("cs_resnet20", {"wdth": 3}, "does not take these arguments"),
        ("nowhere/run", {}, "no such file or folder"),
        ("weights.safetensors", {}, "no such file or folder"),
        (".", {}, "holds no saved model"),
        ("run", {"in_chans": 3}, "built differently"),
        ("run", {"drop_rate": 0.5}, "no drop_rate in"),
        ("bare", {"in_chans": 1}, "in_chans=3 in"),
        ("old.pt", {}, "needs its recipe beside it"),
        ("old.txt", {}, "from these files only"),
        ("torn", {}, "cannot be read"),
        ("odd", {}, "not a model recipe"),
        ("future", {}, "recipe format 1"),
    ],
)
def test_bad_specs(tmp_path, monkeypatch, spec, arguments, message):
    monkeypatch.chdir(tmp_path)
    for name in ("run", "torn", "odd", "future"):
        saved(tmp_path / name)
    save_model(tmp_path / "bare", build(ModelRecipe("cs_resnet20")), ModelRecipe("cs_resnet20"))
    assert load_model("bare", in_chans=3).recipe.kwargs == {}
    (tmp_path / "torn" / "model.safetensors").write_bytes(b"\x00" * 20)
    (tmp_path / "odd" / "model.json").write_text("{]")
    about = json.loads((tmp_path / "future" / "model.json").read_text())
    (tmp_path / "future" / "model.json").write_text(json.dumps({**about, "format": 99}))
    (tmp_path / "old.pt").write_bytes(b"pickle")
    (tmp_path / "old.txt").write_bytes(b"pickle")
    with pytest.raises(InvalidArgument, match=message):
        load_model(spec, **arguments)


def test_another_number_of_classes_makes_a_new_head_and_says_so(tmp_path):
    model, _, _ = saved(tmp_path)
    loaded = load_model(tmp_path, num_classes=7)
    assert loaded.model(torch.randn(1, 1, 8, 8)).shape == (1, 7)
    assert loaded.notes == ("the classifier is new, 7 classes: its weights are random; the file's has 3 classes",)
    assert (loaded.classes, loaded.description, loaded.recipe.kwargs["num_classes"]) == (None, None, 7)
    torch.testing.assert_close(loaded.model.conv1.weight, model.conv1.weight, rtol=0, atol=0)
    assert load_model(tmp_path).classes == ("a", "b", "c")


def test_what_was_a_tuple_is_the_same_argument(tmp_path):
    save_model(tmp_path, timm.create_model("cs_lenet", widths=(2, 4)))
    assert load_model(tmp_path, widths=(2, 4)).model.conv2.out_channels == 4
    with pytest.raises(InvalidArgument, match="built differently"):
        load_model(tmp_path, widths=(2, 5))


def test_a_recipe_holds_only_json():
    with pytest.raises(InvalidArgument, match="only what JSON can hold"):
        ModelRecipe("cs_resnet20", {"norm_layer": torch.nn.BatchNorm2d})
    recipe = ModelRecipe("cs_resnet20", SMALL, compression=[{"method": "prune", "channels": [1, 2]}])
    assert ModelRecipe.from_json(json.loads(json.dumps(recipe.to_json()))) == recipe


def test_shared_weights_are_saved_and_come_back(tmp_path):
    model = timm.create_model("cs_resnet20", **SMALL)
    model.bn1.bias = model.bn1.weight
    save_model(tmp_path, model, ModelRecipe("cs_resnet20", SMALL))
    torch.testing.assert_close(load_model(tmp_path).model.bn1.bias, model.bn1.weight, rtol=0, atol=0)


def test_a_pooled_model_comes_back(tmp_path):
    torch.manual_seed(5)
    arguments = {"in_chans": 1, "num_classes": 3, "width": 4, "depth": 8}
    recipe = ModelRecipe("cs_resnet20", arguments, pooling={"pooling": "isqrt-cov", "dim": 8, "num_classes": 3})
    model = build(recipe).train()
    model(torch.randn(8, 1, 8, 8))  # running statistics of its own
    save_model(tmp_path, model, recipe)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(load_model(tmp_path).model(x), model.eval()(x), rtol=0, atol=0)


@pytest.mark.parametrize("recipe", [None, ModelRecipe("cs_resnet20", SMALL)], ids=["found", "given"])
@pytest.mark.parametrize("method", ["low-rank", "ternary", "low-rank,sparse"])
def test_a_compressed_network_is_saved_with_what_was_done_to_it(tmp_path, method, recipe):
    x = torch.randn(2, 1, 16, 16)
    model = timm.create_model("cs_resnet20", **{**SMALL, "width": 8}).eval()
    made = compress(model, method, example=x, keep_macs=0.6) if "low" in method else compress(model, method, example=x)
    save_model(tmp_path, nn.DataParallel(made), recipe and replace(recipe, kwargs={**SMALL, "width": 8}))
    back = load_model(tmp_path)
    torch.testing.assert_close(back.model(x), made(x), rtol=1e-6, atol=1e-6)
    assert [step["method"] for step in back.recipe.compression] == method.split(",")
    assert compression_history(back.model) == compression_history(made)


def test_a_device_that_is_not_there_is_refused_before_any_work():
    for device in ("gpu", "cuda:99"):
        with pytest.raises(InvalidArgument, match="device"):
            load_model("no such network", device=device)


def test_a_file_in_the_place_of_the_folder_is_no_traceback(tmp_path):
    (tmp_path / "net").write_text("a note of mine")
    with pytest.raises(RunFailed, match="could not be written"):
        save_model(tmp_path / "net", timm.create_model("cs_resnet20", **SMALL))
