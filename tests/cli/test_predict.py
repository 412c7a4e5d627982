"""``predict``, ``evaluate`` and recipes of ``train``: one network, pictures on disk, timm's pixels."""

import csv
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from convsmith.cli.main import main
from convsmith.models import save_model

CLASSES = ("ant", "bee", "cat", "dog", "elk", "fox", "gnu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    root, draw = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number in range(42):
        name = CLASSES[number % 7]
        (root / name).mkdir(exist_ok=True)
        size = tuple(draw.integers(30, 90, 2))
        mode = ("RGB", "L", "RGBA")[number // 7 % 3]
        image = Image.fromarray(draw.integers(0, 256, (*size, 4), dtype=np.uint8)).convert(mode)
        image.save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A saved network with class names and a preprocessing that crops."""
    from dataclasses import asdict

    from convsmith.data import DataDescription
    from convsmith.models.recipes import ModelRecipe

    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=7)
    config = timm.data.resolve_model_data_config(model)
    size = config.pop("input_size")
    about = DataDescription("pets", CLASSES, 3, (64, 64), **config)
    assert size[0] == 3
    folder = tmp_path_factory.mktemp("network")
    save_model(folder, model, ModelRecipe("resnet10t", {"num_classes": 7}, description=asdict(about)))
    return folder, model.eval(), timm.data.create_transform(**config, input_size=(3, 64, 64), is_training=False)


def opened(path):
    image = Image.open(path)
    if image.mode == "RGBA":
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def said(capsys, *words):
    assert main([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_evaluate_counts_as_an_independent_loop_with_timms_transform(photos, network, capsys):
    folder, model, transform = network
    found = said(capsys, "evaluate", folder, "--data", photos, "--split", "train", "--num-workers", 1)
    from convsmith.data import load

    split = load(str(photos), size=64, channels=3).train
    top1 = top5 = 0
    with torch.no_grad():
        for n in range(len(split)):
            order = model(transform(opened(split.name(n)))[None])[0].argsort(descending=True)
            top1 += int(order[0] == split.labels[n])
            top5 += int(split.labels[n] in order[:5])
    metrics = found["metrics"]
    assert metrics["count"] == len(split) > 20
    assert round(metrics["top1"] * len(split)) == top1
    assert round(metrics["top5"] * len(split)) == top5


def test_predict_names_every_picture_and_writes_a_table(photos, network, capsys, tmp_path):
    folder, model, transform = network
    odd = tmp_path / "pictures"
    odd.mkdir()
    (odd / "=cmd|calc.png").write_bytes((photos / "ant" / "0.png").read_bytes())
    found = said(capsys, "predict", folder, odd, photos / "bee", "--out", tmp_path / "out.csv", "--batch-size", 4)
    rows = found["predictions"]
    assert len(rows) == 7
    for row in rows:
        with torch.no_grad():
            probabilities = model(transform(opened(row["image"]))[None])[0].softmax(0)
        first, second = probabilities.topk(2).indices.tolist()
        assert (row["class"], row["runner_up"]) == (CLASSES[first], CLASSES[second])
        assert row["probability"] == pytest.approx(float(probabilities[first]), abs=1e-5)
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.reader(file))
    assert table[0] == ["image", "class", "probability", "runner_up", "runner_up_probability"]
    assert len(table) == 8
    assert not [cell for row in table for cell in row if cell[:1] in "=+-@" and cell]
    assert main(["predict", str(folder), str(odd), "--out", str(tmp_path / "out.csv")]) == 2
    assert "--overwrite" in capsys.readouterr().err


def test_classes_that_are_some_of_the_networks(photos, network, capsys, tmp_path):
    folder = network[0]
    for name, other in (("fox", "Fox"), ("bee", "honey_bee")):
        (tmp_path / "some" / other).mkdir(parents=True)
        for file in sorted((photos / name).iterdir()):
            (tmp_path / "some" / other / file.name).write_bytes(file.read_bytes())
    words = ["evaluate", str(folder), "--data", str(tmp_path / "some"), "--split", "train"]
    assert main(words) == 2
    assert "honey_bee" in capsys.readouterr().err
    (tmp_path / "map.txt").write_text("honey bee=bee\n")
    found = said(capsys, *words, "--class-map", tmp_path / "map.txt")
    confusion = found["metrics"]["confusion"]
    assert [sum(row) > 0 for row in confusion] == [name in ("bee", "fox") for name in CLASSES]


def test_a_head_of_another_size_is_made_anew_and_that_is_said(photos, network, capsys, tmp_path):
    two = tmp_path / "two"
    for name in ("ant", "bee"):
        (two / name).mkdir(parents=True)
        for file in sorted((photos / name).iterdir()):
            (two / name / file.name).write_bytes(file.read_bytes())
    words = ["train", "--model", str(network[0]), "--data", str(two), "--steps", "2", "--batch-size", "4"]
    words += ["--freeze", "3", "--freeze-norm", "--optimizer", "adamw", "--layer-decay", "0.7", "--lr", "0.001"]
    words += ["--augment", "imagenet", "--mixup", "0.2", "--set", "auto_augment=rand-m5", "re_prob=0.5"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    heard = capsys.readouterr()
    assert "head" in heard.err + heard.out
    from convsmith.models import load_model

    loaded = load_model(tmp_path / "run")
    assert loaded.classes == ("ant", "bee")
    assert loaded.preprocessing.crop_pct == load_model(network[0]).preprocessing.crop_pct
    before = dict(network[1].state_dict())
    after = loaded.model.state_dict()
    assert torch.equal(after["layer1.0.conv1.weight"], before["layer1.0.conv1.weight"])
    assert not torch.equal(after["layer4.0.conv1.weight"], before["layer4.0.conv1.weight"])


def test_a_linear_probe_on_the_command_line(photos, network, capsys, tmp_path):
    words = ["train", "--model", network[0], "--data", photos, "--linear-probe", "--weight-decay", "0.001"]
    found = said(capsys, *words, "--out", tmp_path / "run", "--batch-size", "8")
    assert found["training"] == {}
    from convsmith.models import load_model

    after, before = load_model(tmp_path / "run").model.state_dict(), network[1].state_dict()
    assert {k for k in after if not torch.equal(after[k], before[k])} == {"fc.weight", "fc.bias"}


@pytest.mark.parametrize(("mean", "told"), [((0.485, 0.456, 0.406), False), ((0.1, 0.1, 0.1), True)])
def test_a_teacher_of_another_normalisation_is_said(mean, told, photos, network, capsys, tmp_path):
    from convsmith.data import DataDescription
    from convsmith.models.recipes import ModelRecipe

    about = DataDescription("pets", CLASSES, 3, (64, 64), mean, (0.229, 0.224, 0.225))
    recipe = ModelRecipe("resnet10t", {"num_classes": 7}, description=about.to_json())
    save_model(tmp_path / "teacher", network[1], recipe)
    words = ["train", "--data", photos, "--size", 32, "--channels", 3, "--teacher", tmp_path / "teacher", "--dry-run"]
    assert main(list(map(str, words))) == 0
    assert ("the teacher knows images of mean" in capsys.readouterr().err) == told


def test_a_linear_probe_is_the_work_of_one_process(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["train", "--data", "digits", "--linear-probe", "--out", "run", "--dry-run"]) == 2
    assert "--linear-probe" in capsys.readouterr().err


def test_outputs_that_are_not_finite_are_no_prediction(photos, network, capsys, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(network[0] / "model.safetensors")
    save_file({**weights, "fc.bias": torch.full_like(weights["fc.bias"], torch.nan)}, tmp_path / "broken.safetensors")
    words = ["predict", network[0], photos / "bee", "--weights", tmp_path / "broken.safetensors", "--json"]
    assert main(list(map(str, words))) == 1
    assert "output is not finite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "--data", "digits", "--set", "auto_augment=rand-m5"], "augment imagenet"),
        (
            ["train", "--data", "digits", "--augment", "imagenet", "--set", "auto_augment=bogus"],
            "timm makes no training transform",
        ),
        (["train", "--data", "digits", "--mixup", "-1"], "--mixup"),
        (["train", "--data", "digits", "--linear-probe", "--mixup", "1"], "--linear-probe"),
        (["train", "--data", "digits", "--linear-probe", "--epochs", "9", "--lr", "0.1"], "leave --epochs out"),
        (["train", "--data", "digits", "--linear-probe", "--lr", "0.2", "--clip", "1"], "leave --lr, --clip out"),
        (["train", "--data", "digits", "--freeze", "layer9"], "no submodule"),
        (["train", "--data", "digits", "--teacher", "nothing"], "--teacher"),
        (["train", "--data", "digits", "--optimizer", "adamww"], "adamw"),
        (["evaluate", "--data", "digits"], "one model"),
        (["predict", "NETWORK", "nowhere.png"], "no such image"),
        (["predict", "NETWORK", "TEXT"], "not an image"),
        (["predict", "NETWORK", "TEXT", "--out", "a.txt"], "CSV"),
    ],
)
def test_bad_requests(words, message, network, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("not an image")
    places = {"NETWORK": str(network[0]), "TEXT": str(tmp_path / "text.png")}
    assert main([places.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err
