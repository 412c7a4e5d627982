"""The explain and detect verbs on a tiny saved network: pages, files, messages and exit codes."""

import csv
import itertools
import json
from types import SimpleNamespace

import pytest
import timm
import torch
from safetensors.torch import load_file

from convsmith.cli.main import main
from convsmith.interpretation import Routes
from convsmith.models import save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from convsmith.data import load
    from convsmith.models.storage import ModelRecipe, build

    about = load("digits").description
    torch.manual_seed(0)
    recipe = ModelRecipe("cs_resnet20", {"num_classes": 10, "in_chans": 1, "width": 4}, description=about.to_json())
    folder = tmp_path_factory.mktemp("model")
    save_model(folder, build(recipe), recipe)
    return folder


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(load_digits().images[:3]):
        Image.fromarray((image * 15.9).astype("uint8")).save(folder / f"{number}.png")
    return folder


def last(capsys):
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_pictures_are_explained_with_neighbours_on_one_page(saved, pictures, tmp_path, capsys):
    words = ["explain", str(saved), str(pictures / "0.png"), str(pictures), "--data", "digits"]
    more = ["--reference", "12", "--neighbours", "2", "--steps", "5", "--out", str(tmp_path / "run"), "--json"]
    assert main([*words, *more]) == 0
    result = last(capsys)
    assert result["headline"]["images"] == 3  # the one named twice is explained once
    page = (tmp_path / "run").rglob("*.html")
    text = next(iter(page)).read_text()
    assert "under its heat map" in text
    assert "Without the critical nodes" in text
    chapter = json.loads((tmp_path / "run" / "sections" / "41-image-000.json").read_text())
    assert [picture["width"] for picture in chapter["images"]] == [320, 320, 96, 96]
    assert all(table["folded"] for table in chapter["tables"])
    assert chapter["text"][0].startswith("The network says ")
    assert chapter["title"] == "0.png"


@pytest.mark.parametrize("verb", [["explain"], ["detect", "score"]])
def test_a_missing_picture_is_named_before_any_network_is_looked_for(verb, tmp_path, capsys, monkeypatch):
    from convsmith.cli.shell import classifier

    monkeypatch.setattr(classifier, "load", lambda *_a, **_k: pytest.fail("the network was loaded first"))
    more = ["--detector", str(tmp_path / "d.safetensors")] if verb[0] == "detect" else []
    assert main([*verb, "resnet18", str(tmp_path / "missing.png"), *more]) == 2
    assert "missing.png" in capsys.readouterr().err


def test_a_broken_picture_among_those_named_is_refused_or_left_out(saved, pictures, tmp_path, capsys):
    (pictures / "1.png").write_bytes(b"not an image")
    words = ["explain", str(saved), str(pictures), "--mode", "paper", "--steps", "2", "--save", str(tmp_path / "r")]
    assert main([*words, "--out", str(tmp_path / "run")]) == 2
    assert "1.png" in capsys.readouterr().err
    assert main([*words, "--broken", "skip", "--out", str(tmp_path / "run")]) == 0
    said = capsys.readouterr()
    assert "1.png" in said.err
    assert "2.png" in said.out
    assert len(Routes.load(tmp_path / "r")) == 2


def explaining_digits(saved, *, steps):
    options = ["--data", "digits", "--limit", "9", "--steps", str(steps), "--mode", "paper", "--show", "0"]
    return ["explain", str(saved), *options]


def test_routes_of_a_data_set_are_saved(saved, tmp_path, capsys):
    words = explaining_digits(saved, steps=3)
    assert main([*words, "--save", str(tmp_path / "r.safetensors"), "--out", str(tmp_path / "run"), "--json"]) == 0
    assert len(Routes.load(tmp_path / "r.safetensors")) == 9
    assert last(capsys)["routes"].endswith("r.safetensors")


def test_an_interrupted_save_goes_on_where_it_was(saved, tmp_path, capsys, monkeypatch):
    from convsmith.interpretation import stream

    solve, calls = stream.solve, []

    def stopping(*args, **settings):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append(args[1])
        return solve(*args, **settings)

    file = tmp_path / "r.safetensors"
    words = explaining_digits(saved, steps=2)
    words += ["--batch-size", "3", "--save", str(file)]
    monkeypatch.setattr(stream, "solve", stopping)
    assert main([*words, "--out", str(tmp_path / "first")]) == 130
    assert "goes on from there" in capsys.readouterr().err
    assert not file.exists()
    assert not (tmp_path / "first").exists()
    other = [word if word != "9" else "6" for word in words]
    assert main([*other, "--out", str(tmp_path / "other")]) == 2
    assert "other images" in capsys.readouterr().err
    calls.clear()
    assert main([*words, "--out", str(tmp_path / "second")]) == 0
    assert len(calls) == 1  # two batches were there already
    assert not (tmp_path / "r.safetensors.parts").exists()
    whole = main([*words[:-1], str(tmp_path / "whole.safetensors"), "--out", str(tmp_path / "third")])
    assert whole == 130  # the third batch in one go: stopped again, nothing half done in the file
    monkeypatch.setattr(stream, "solve", solve)
    assert main([*words[:-1], str(tmp_path / "whole.safetensors"), "--out", str(tmp_path / "third")]) == 0
    first, second = Routes.load(file), Routes.load(tmp_path / "whole.safetensors")
    assert torch.equal(first.vector(), second.vector())
    assert torch.equal(first.labels, second.labels)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", "MODEL"], "nothing to explain"),
        (["explain", "MODEL", "EMPTY"], "no image"),
        (["explain", "MODEL", "missing.png"], "no such image"),
        (["explain", "MODEL", "TEXT"], "not an image"),
        (["detect", "score", "MODEL", "TEXT", "--detector", "TEXT"], "safetensors"),
        (["explain", "MODEL", "--data", "digits", "--mode", "paper", "--allow-closed"], "published"),
        (["explain", "MODEL", "--data", "digits", "--gamma", "-1"], "gamma"),
        (["explain", "MODEL", "--data", "digits", "--show", "-1"], "--show"),
        (["export", "MODEL", "--device", "cuda"], "--device"),
        (["detect", "fit", "MODEL"], "needs images"),
        (["detect", "score", "MODEL", "EMPTY"], "fitted detector"),
        (["detect", "score", "MODEL", "EMPTY", "--detector", "TEXT", "--per-class", "3"], "--per-class"),
        (["detect", "score", "MODEL", "EMPTY", "--detector", "TEXT", "--resume"], "--resume"),
        (["detect", "score", "MODEL", "EMPTY", "--detector", "TEXT", "--out", "EMPTY"], "CSV"),
        (["detect", "fit", "MODEL", "--data", "digits", "--epsilon", "0"], "--epsilon"),
        (["detect", "fit", "MODEL", "--data", "digits", "--per-class", "0"], "--per-class"),
        (["detect", "fit", "MODEL", "--data", "digits", "--gamma", "-1"], "gamma"),
    ],
)
def test_bad_requests_end_with_2_and_a_reason(saved, tmp_path, capsys, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.png").write_text("not an image")
    places = {"MODEL": str(saved), "EMPTY": str(tmp_path / "empty"), "TEXT": str(tmp_path / "text.png")}
    assert main([places.get(word, word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_detector_is_fitted_shown_and_scores_pictures(saved, pictures, tmp_path, capsys):
    fit = ["detect", "fit", str(saved), "--data", "digits", "--per-class", "2", "--test-images", "12", "--json"]
    assert main([*fit, "--out", str(tmp_path / "guard")]) == 0
    result = last(capsys)
    assert (tmp_path / "guard" / "detector.safetensors").is_file()
    assert (tmp_path / "guard" / "sections" / "48-detector.json").is_file()
    score = ["detect", "score", str(saved), str(pictures), "--detector", result["detector"], "--json"]
    assert main(score) == 0
    found = last(capsys)
    assert set(found["scores"]) == {"0.png", "1.png", "2.png"}
    assert main(score) == 0
    assert last(capsys)["scores"] == found["scores"]
    assert main([*score, "--out", str(tmp_path / "scores.csv")]) == 0
    with (tmp_path / "scores.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["image"]: round(float(row["score"]), 6) for row in rows} == found["scores"]
    assert sum(row["verdict"] == "adversarial" for row in rows) == found["flagged"]


def test_an_interrupted_fit_goes_on_where_it_was_to_the_same_bits(saved, tmp_path, capsys, monkeypatch):
    from convsmith.cli.reports import detect_report
    from convsmith.interpretation import protocol, stream

    monkeypatch.setattr(detect_report, "images_at_once", lambda *_: 4)  # several batches of every kind
    counts, stop = {"solve": 0, "attack": 0}, {}
    real = {"solve": stream.solve, "attack": protocol.attack}

    def counting(name):
        def counted(*args, **settings):
            if counts[name] == stop.get(name):
                raise KeyboardInterrupt
            found = real[name](*args, **settings)
            counts[name] += 1
            return found

        return counted

    monkeypatch.setattr(stream, "solve", counting("solve"))
    monkeypatch.setattr(protocol, "attack", counting("attack"))
    fit = ["detect", "fit", str(saved), "--data", "digits", "--per-class", "1", "--test-images", "6", "--json"]
    assert main([*fit, "--out", str(tmp_path / "whole")]) == 0
    assert " by a timed pass" in capsys.readouterr().out
    whole = dict(counts)
    assert whole == {"solve": 2 * 3 + 2 * 9, "attack": 3 + 2 * 4}  # 10 images to fit on, 6 to test on
    counts.update(solve=0, attack=0)
    run, parts = tmp_path / "run", tmp_path / "run" / "detector.parts"
    resumed = ["detect", "--out", str(run), "--resume"]
    for words, stopping in (
        ([*fit, "--out", str(run)], {"attack": 3}),
        (resumed, {"solve": 5}),
        (resumed, {"solve": 9}),
    ):
        stop.clear()
        stop.update(stopping)
        assert main(words) == 130
        assert f"convsmith detect --out {run} --resume" in capsys.readouterr().err
        assert (parts / "belongs-to.json").is_file()
    stop.clear()
    assert main(resumed) == 0
    assert counts == whole  # nothing was searched or attacked twice
    assert not parts.exists()
    ours, theirs = (load_file(tmp_path / name / "detector.safetensors") for name in ("run", "whole"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    pages = [(tmp_path / name / "sections" / "48-detector.json").read_bytes() for name in ("run", "whole")]
    assert pages[0] == pages[1]


def test_a_fit_goes_on_only_with_the_network_it_began_with(saved, tmp_path, capsys, monkeypatch):
    from convsmith.interpretation import stream
    from convsmith.models.storage import build, load_model

    def stopped(*_args, **_settings):
        raise KeyboardInterrupt

    loaded = load_model(saved)
    save_model(tmp_path / "first", loaded.model, loaded.recipe)
    monkeypatch.setattr(stream, "solve", stopped)
    fit = ["detect", "fit", str(tmp_path / "first"), "--data", "digits", "--per-class", "1", "--test-images", "4"]
    assert main([*fit, "--out", str(tmp_path / "run")]) == 130
    save_model(tmp_path / "first", build(loaded.recipe), loaded.recipe)
    assert main(["detect", "--out", str(tmp_path / "run"), "--resume"]) == 2
    assert "another network" in capsys.readouterr().err


def test_a_detector_of_the_best_features_refuses_another_network_of_the_same_shape(saved, tmp_path, capsys):
    from convsmith.models.storage import build, load_model, save_model

    fit = ["detect", "fit", str(saved), "--data", "digits", "--per-class", "2", "--test-images", "12", "--json"]
    assert main([*fit, "--features", "best", "--out", str(tmp_path / "guard")]) == 0
    result = last(capsys)
    score = ["--data", "digits", "--limit", "4", "--detector", result["detector"], "--json"]
    assert main(["detect", "score", str(saved), *score]) == 0
    assert last(capsys)["images"] > 0
    loaded = load_model(saved)
    other = build(loaded.recipe)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.01)
    save_model(tmp_path / "other", other, loaded.recipe)
    assert main(["detect", "score", str(tmp_path / "other"), *score]) == 2
    assert "other weights" in capsys.readouterr().err


def test_a_probability_claims_neither_0_nor_100():
    from convsmith.cli.reports.explain_report import _percent

    assert [_percent(p) for p in (0.0, 0.004, 0.5, 0.9995, 1.0)] == [
        "under 1 %", "under 1 %", "50%", "over 99 %", "over 99 %",
    ]  # fmt: skip


def test_a_detector_that_should_not_be_used_says_why():
    from convsmith.cli.reports.detect_report import warnings

    def row(features, area, low):
        report = SimpleNamespace(auroc=area, auroc_low=low, auroc_high=0.99)
        return SimpleNamespace(features=features, seen=True, report=report)

    rows = [row("routes", 0.6, 0.45), row("logits", 0.9, 0.8)]
    chance, better = warnings(rows, "routes")
    assert "0.60 (0.45 to 0.99)" in chance
    assert "logits do better than routes" in better
    assert warnings(rows, "logits") == []
    assert warnings(rows, "routes", chosen=True) == [chance]


@pytest.mark.slow
def test_a_slow_machine_fits_the_same_detector(saved, tmp_path, monkeypatch, capsys):
    from convsmith.cli.shell import progress

    files = []
    for name, second in (("fast", 1e-9), ("slow", 3.0)):  # each look at the clock: later by so much
        ticks = (second * n for n in itertools.count())
        monkeypatch.setattr(progress, "time", SimpleNamespace(monotonic=lambda ticks=ticks: next(ticks)))
        fit = ["detect", "fit", str(saved), "--data", "digits", "--per-class", "1", "--test-images", "4"]
        assert main([*fit, "--out", str(tmp_path / name)]) == 0
        files.append(load_file(tmp_path / name / "detector.safetensors"))
    capsys.readouterr()
    assert all(torch.equal(files[0][name], files[1][name]) for name in files[0])


def test_images_solved_at_once_follow_from_the_operations():
    from convsmith.cli.reports.detect_report import images_at_once

    layer, images = torch.nn.Conv2d(3, 8, 3), torch.zeros(2, 3, 34, 34)
    macs = 32 * 32 * 8 * 3 * 9
    assert images_at_once(layer, images, 30) == 32
    assert images_at_once(layer, images, 100_000) == 10**11 // (100_000 * macs) == 4
    assert images_at_once(layer, images, 10**7) == 1


def test_a_detector_is_fitted_on_pictures_without_labels(saved, tmp_path, capsys):
    from PIL import Image
    from sklearn.datasets import load_digits

    folder = tmp_path / "own"
    folder.mkdir()
    words = ["detect", "fit", str(saved), "--data", f"images:{folder}", "--json", "--features", "best"]
    for number, image in enumerate(load_digits().images[:24]):
        Image.fromarray((image * 15.9).astype("uint8")).save(folder / f"{number:02d}.png")
        if number == 4:
            assert main([*words, "--out", str(tmp_path / "few")]) == 2
            assert "too few images to test on" in capsys.readouterr().err
    assert main([*words, "--per-class", "8", "--out", str(tmp_path / "guard")]) == 0
    printed = capsys.readouterr()
    assert "the network's own predictions take their place" in printed.out
    assert " to fit, " in printed.out
    result = json.loads(printed.out.splitlines()[-1])
    assert result["headline"]["training images"] <= 16
    assert main(["detect", "score", str(saved), str(folder), "--detector", result["detector"], "--json"]) == 0
    assert last(capsys)["images"] == 24


def test_a_transformer_is_explained_without_heat_maps(pictures, tmp_path):
    torch.manual_seed(0)
    small = {"img_size": 16, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_classes": 3}
    network = timm.create_model("vit_tiny_patch16_224", **small)
    save_model(tmp_path / "vit", network)
    words = ["explain", str(tmp_path / "vit"), str(pictures / "0.png"), "--steps", "5", "--size", "16"]
    assert main([*words, "--out", str(tmp_path / "run")]) == 0
    (chapter,) = [json.loads(file.read_text()) for file in (tmp_path / "run/sections").glob("41-*.json")]
    assert len(chapter["images"]) == 1
