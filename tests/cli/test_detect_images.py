"""Which images the verbs look at and what they are called, and detectors that no verb has fitted."""

import csv
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.cli.main import main
from convsmith.cli.reports.detect_report import best_fit
from convsmith.cli.shell.progress import pass_seconds
from convsmith.data import load
from convsmith.interpretation import RouteDetector, find_routes
from convsmith.models import save_model
from convsmith.models.storage import ModelRecipe, build


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    about = load("digits").description
    recipe = ModelRecipe("cs_resnet20", {"num_classes": 10, "in_chans": 1, "width": 4}, description=about.to_json())
    network = build(recipe).eval()
    save_model(tmp_path / "model", network, recipe)
    return SimpleNamespace(folder=tmp_path / "model", network=network)


def digit_folders(folder, split, count):
    """Images of the digits 0 to 4, one folder a class: sorted by class, as folders are read."""
    for label in range(5):
        (folder / split / str(label)).mkdir(parents=True)
    data = load("digits").splits[split]
    for number in range(count):
        label = int(data.labels[number])
        if label < 5:
            pixels = (data.pixels([number])[0, 0] * 255).byte().numpy()
            Image.fromarray(pixels).save(folder / split / str(label) / f"{number}.png")


def test_the_images_of_a_table_are_drawn_from_all_classes(saved, tmp_path, monkeypatch):
    from convsmith import interpretation

    seen = []

    def table(_model, train, test, **_settings):
        seen.append(test.labels)
        raise KeyboardInterrupt

    digit_folders(tmp_path / "own", "train", 60)
    digit_folders(tmp_path / "own", "test", 120)
    monkeypatch.setattr(interpretation, "detection_table", table)
    fit = ["detect", "fit", str(saved.folder), "--data", str(tmp_path / "own"), "--per-class", "1"]
    assert main([*fit, "--test-images", "12", "--out", str(tmp_path / "run")]) == 130
    assert len(seen[0]) == 12
    assert len(seen[0].unique()) >= 4


@pytest.mark.slow
def test_the_best_features_are_chosen_on_the_images_to_fit_on(saved, tmp_path, capsys, monkeypatch):
    """Regression: they were those with the largest area on the test images, which was then given as theirs."""
    from convsmith import interpretation

    table, titles = interpretation.detection_table, []
    fit = ["detect", "fit", str(saved.folder), "--data", "digits", "--per-class", "2", "--test-images", "12", "--json"]
    for favourite in ("logits", "max-probability"):

        def flattering(*args, favourite=favourite, **settings):
            rows = table(*args, **settings)
            return [replace(r, report=replace(r.report, auroc=float(r.features == favourite))) for r in rows]

        monkeypatch.setattr(interpretation, "detection_table", flattering)
        assert main([*fit, "--features", "best", "--out", str(tmp_path / favourite)]) == 0
        titles.append(json.loads(capsys.readouterr().out.splitlines()[-1])["title"])
    assert titles[0] == titles[1]


def test_the_best_features_are_those_that_tell_the_images_to_fit_on_apart():
    detectors = {
        name: SimpleNamespace(out_of_fold_=np.array(scores))
        for name, scores in (("routes", [0.1, 0.6, 0.5, 0.7]), ("logits", [0.1, 0.2, 0.5, 0.7]))
    }
    assert best_fit(detectors) == "logits"


@pytest.mark.parametrize("rate", ["0", "1", "1.5"])
def test_a_rate_that_is_none_is_refused_before_work(saved, tmp_path, capsys, monkeypatch, rate):
    monkeypatch.chdir(tmp_path)
    assert main(["detect", "fit", str(saved.folder), "--data", "digits", "--rate", rate]) == 2
    assert "--rate" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def scored(saved, words, capsys):
    assert main(["detect", "score", str(saved.folder), *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out.splitlines()[-1])


@pytest.mark.parametrize("chosen", ["routes of some layers", "some layers of the routes"])
def test_a_detector_of_some_layers_is_scored_as_it_was_fitted(saved, tmp_path, capsys, chosen):
    images = load("digits").test.fetch(range(12)).images
    layers = find_routes(saved.network, images[:1], mode="paper", steps=1).layers[-2:]
    find = {"layers": layers} if chosen == "routes of some layers" else {}
    clean = find_routes(saved.network, images, mode="paper", **find)
    bad = find_routes(saved.network, images.flip(3), mode="paper", **find)
    detector = RouteDetector(layers=None if find else layers, trees=5).fit(clean, bad, network=saved.network)
    file = detector.save(tmp_path / "d.safetensors")
    found = scored(saved, ["--data", "digits", "--limit", "12", "--detector", str(file)], capsys)
    drawn = load("digits").test.drawn(12, 0).fetch(slice(None)).images
    expected = detector.score(find_routes(saved.network, drawn, mode="paper", **find))
    torch.testing.assert_close(torch.tensor(list(found["scores"].values())).double(), expected, atol=1e-5, rtol=0)


def test_images_of_one_name_in_two_folders_keep_apart(saved, tmp_path, capsys):
    for name, value in (("a", 10), ("b", 200)):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8), value).save(tmp_path / name / "x.png")
    Image.new("L", (8, 8), 90).save(tmp_path / "a" / "y.png")
    images = load("digits").test.fetch(range(6)).images
    routes = [find_routes(saved.network, x, mode="paper", steps=2) for x in (images, images.flip(3))]
    file = RouteDetector(trees=3).fit(*routes).save(tmp_path / "d.safetensors")
    words = [str(tmp_path / "a"), str(tmp_path / "b"), "--detector", str(file), "--out", str(tmp_path / "s.csv")]
    names = {str(tmp_path / "a" / "x.png"), str(tmp_path / "b" / "x.png"), "y.png"}
    assert set(scored(saved, words, capsys)["scores"]) == names
    with (tmp_path / "s.csv").open(newline="") as table:
        assert {row["image"] for row in csv.DictReader(table)} == names


def test_a_pass_is_timed_on_the_networks_own_kind_of_numbers(saved):
    assert pass_seconds(saved.network.double(), torch.zeros(2, 1, 8, 8)) > 0


def test_channels_that_the_network_does_not_take_are_refused_for_files_too(saved, tmp_path, capsys):
    Image.new("L", (8, 8), 90).save(tmp_path / "x.png")
    words = ["explain", str(saved.folder), str(tmp_path / "x.png"), "--channels", "3", "--out", str(tmp_path / "run")]
    assert main(words) == 2
    assert "--channels" in capsys.readouterr().err


def test_one_image_to_fit_on_is_refused_before_work(saved, tmp_path, capsys):
    (tmp_path / "own").mkdir()
    for number in range(12):
        Image.new("L", (8, 8), 90 + number).save(tmp_path / "own" / f"{number}.png")
    words = ["detect", "fit", str(saved.folder), "--data", f"images:{tmp_path / 'own'}", "--per-class", "1"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "--per-class" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("reference", [5, 3, 1])
def test_a_training_image_is_not_its_own_neighbour(saved, reference):
    from convsmith.cli.verbs.explain import _neighbours

    data = load("digits").map(train=load("digits").train.drawn(5, 0))
    find = {"mode": "paper", "steps": 2}
    routes = find_routes(saved.network, data.train.fetch(slice(None)).images, **find)
    words = {"split": "train", "image_files": (), "neighbours": 2, "reference": reference, "show": 4, "seed": 0}
    found = _neighbours(SimpleNamespace(**words), saved.network, data, routes, find)
    if reference == 1:
        assert found is None
        return
    pixels = found[0]
    assert pixels.shape[:2] == (4, 2)
    for row in range(4):
        assert all(not torch.equal(near, data.train.pixels([row])[0]) for near in pixels[row])
