"""An audit: every chapter answers or says why not, within its time, and goes on where it was stopped."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from markupsafe import escape
from PIL import Image

from convsmith.cli import main
from convsmith.cli.reports import audit_leaner, audit_sharper, audit_subject
from convsmith.cli.shell import options
from convsmith.cli.verbs import audit, demo
from convsmith.data.pictures import Files
from convsmith.errors import RunFailed
from convsmith.models.storage import ModelRecipe, build, save_model

CHAPTERS = ("explainable", "leaner", "sharper", "guarded", "portable")


def network(folder, classes=3):
    torch.manual_seed(0)
    recipe = ModelRecipe("cs_resnet20", {"width": 4, "depth": 8, "num_classes": classes, "in_chans": 3})
    save_model(folder, build(recipe).eval(), recipe)
    return str(folder)


def folder_of(root, classes=("a", "b", "c"), images=6):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for n in range(images):
            values = np.random.default_rng(100 * c + n).integers(60 * c, 60 * c + 90, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(values).save(root / name / f"{n}.png")
    return str(root)


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(audit_leaner, "WAYS", audit_leaner.WAYS[2:])
    monkeypatch.setattr(audit_leaner, "SECONDS", 0.05)


def test_every_chapter_answers_or_says_why_and_goes_on_where_it_was_stopped(tmp_path, quick, capsys, monkeypatch):
    model, data = network(tmp_path / "a net"), folder_of(tmp_path / "the data")
    run = tmp_path / "run"
    words = ["audit", model, "--data", data, "--out", str(run), "--runtime", "torch", "--json"]
    monkeypatch.setattr(audit_sharper, "run", lambda subject: 1 / 0)
    assert main.main(words) == 1
    assert "sharper broke" in capsys.readouterr().err
    monkeypatch.undo()
    assert not (run / "audit/sharper.json").exists()
    before = (run / "audit/guarded.json").stat().st_mtime_ns
    assert main.main(["audit", "--out", str(run), "--resume", "--json"]) == 0
    said = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (run / "audit/guarded.json").stat().st_mtime_ns == before
    assert list(said["chapters"]) == list(CHAPTERS)
    for name, chapter in said["chapters"].items():
        assert bool(chapter["sentence"]) != bool(chapter["absent"]), name
        if chapter["command"]:  # runs as it stands, spaces in names or not
            _, verb, *rest = shlex.split(chapter["command"])
            given = options.parse(verb, main.Program().load(verb).Arguments, rest)
            assert (given.model, given.data) == (model, data)
    assert "--target" in said["chapters"]["portable"]["absent"]
    assert "untrained" in said["notes"][-1]
    page = (run / "report.html").read_text()
    assert all(title in page for title in ("Leaner", "Sharper", "Explainable", "Guarded", "Portable"))
    assert escape(said["chapters"]["sharper"]["command"]) in page


def test_a_second_domain_is_told_apart_and_missing_classes_are_seen(tmp_path):
    from convsmith.cli.reports import audit_portable
    from convsmith.models.storage import load_model

    model = network(tmp_path / "net")
    source, _ = audit_subject.read_images(folder_of(tmp_path / "source", images=8), most=100, seed=0)
    target, _ = audit_subject.read_images(folder_of(tmp_path / "target", ("a", "b"), images=10), most=100, seed=0)
    words = {"model": model, "start": model, "data": "d", "labelled": "d", "target": "t"}
    subject = audit_subject.Subject(load_model(model), source, source, target, words, "torch", 0, "cpu")
    chapter = audit_portable.run(subject)
    assert chapter.facts["held"] == ["a", "b"]
    assert "does not have" in chapter.sentence
    few = source.subset(source.labels < 2)  # of many classes a sample shows some
    assert audit_portable.run(replace(subject, labelled=few, cache={})).facts["held"] == ["a", "b"]


def test_folders_give_labels_only_where_every_picture_has_one(tmp_path):
    root = Path(folder_of(tmp_path / "x"))
    known, _ = audit_subject.read_images(str(root), most=9, seed=0)
    assert (known.classes, sorted(known.labels.tolist())) == (("a", "b", "c"), [0, 0, 0, 1, 1, 1, 2, 2, 2])
    assert all(known.name(n).split("/")[-2] == "abc"[label] for n, label in enumerate(known.labels))
    assert audit_subject.read_images(f"images:{root}", most=9, seed=0)[0].classes == ()
    Image.new("RGB", (4, 4)).save(root / "loose.png")
    (root / "broken.png").write_text("no image")
    loose, notes = audit_subject.read_images(str(root), most=100, seed=0)
    assert (len(loose), loose.classes, set(loose.labels.tolist())) == (19, (), {-1})
    assert notes == [f"1 files of {root} cannot be read and are left out: {root / 'broken.png'}"]


def test_a_large_folder_is_not_read_whole(tmp_path, monkeypatch):
    root, opened = folder_of(tmp_path / "x", images=30), []
    read = Files.open
    monkeypatch.setattr(Files, "open", lambda self, n: opened.append(self.path(n)) or read(self, n))
    found, _ = audit_subject.read_images(root, most=9, seed=0)
    found.fetch(slice(None))
    assert (len(set(opened)), sorted(found.labels.tolist())) == (9, [0, 0, 0, 1, 1, 1, 2, 2, 2])


def test_an_interrupted_audit_says_how_to_go_on(tmp_path, capsys, monkeypatch):
    model, data, run = network(tmp_path / "net"), folder_of(tmp_path / "data"), tmp_path / "a run"

    def stopped(subject):
        raise KeyboardInterrupt

    monkeypatch.setattr(audit_sharper, "run", stopped)
    assert main.main(["audit", model, "--data", data, "--out", str(run)]) == 130
    assert f"go on with: convsmith audit --out '{run}' --resume" in capsys.readouterr().err


def test_a_chapter_stops_when_its_time_is_over():
    subject = audit_subject.Subject(None, (), None, None, {}, "torch", 0, "cpu", deadline=-1.0)
    with pytest.raises(audit_subject.OutOfTime, match="budget"):
        subject.progress(0, 1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["audit"], "add MODEL and --data DATA"),
        (["audit", "cs_resnet20"], "add --data DATA"),
        (
            ["audit", "resnet18", "--data", "images:nowhere"],
            "the path does not exist",
        ),  # before published weights are looked for
        (["audit", "cs_resnet20", "--data", "digits", "--minutes", "0"], "--minutes"),
        (["audit", "cs_resnet20", "--data", "digits", "--runtime", "onxruntime"], "onnxruntime"),
        (["audit", "cs_resnet20", "--data", "images:nowhere", "--random"], "the path does not exist"),
        (["audit", "cs_resnet20", "--data", "digits", "--random", "--weights", "x"], "contradict"),
    ],
)
def test_bad_input_is_refused_before_work(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main.main(words) == 2
    assert said in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


FACTORY = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    body = [nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3, 2, 1), nn.ReLU()]
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 4))
"""


@pytest.mark.slow
@pytest.mark.parametrize("model", ["resnet50", "vit_tiny_patch16_224", "own_networks:build"])
def test_any_network_is_audited_on_photographs(model, tmp_path, capsys, monkeypatch):
    pytest.importorskip("skimage")
    demo.photographs(tmp_path / "photographs", 0)
    (tmp_path / "own_networks.py").write_text(FACTORY)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    random = [] if ":" in model else ["--random"]
    assert (
        main.main(["audit", model, *random, "--data", "photographs", "--minutes", "15", "--out", "run", "--json"]) == 0
    )
    printed = capsys.readouterr().out.splitlines()
    said = json.loads(printed[-1])
    assert said["chapters"]["leaner"]["facts"]["ways"][0]["agreement"]
    assert said["chapters"]["guarded"]["sentence"]
    assert (
        said["chapters"]["explainable"]["sentence"] or "no smaller route" in said["chapters"]["explainable"]["absent"]
    )
    assert "no labels" in said["chapters"]["sharper"]["absent"]
    assert sum("untrained" in line for line in printed[:-1]) == 1
    assert sum(line.startswith("next:") for line in printed) == 1


def test_an_interval_is_wilsons():
    share, low, high = audit_subject.wilson(0, 10)
    assert (share, low) == (0, 0)
    assert high == pytest.approx(0.2775, abs=1e-3)
    assert RunFailed("x").exit_code == 1
    assert set(audit.WEIGHTS) == set(audit.CHAPTERS)


def test_routes_that_do_not_depend_on_the_image_are_not_counted(tmp_path, monkeypatch):
    from convsmith.cli.reports import audit_explainable
    from convsmith.models.storage import load_model

    model = network(tmp_path / "net")
    images, _ = audit_subject.read_images(folder_of(tmp_path / "data"), most=100, seed=0)
    subject = audit_subject.Subject(
        load_model(model), images, images, None, {"model": "m", "data": "d"}, "torch", 0, "cpu"
    )
    whole = audit_explainable.run(subject).facts
    closed = property(lambda flags: torch.zeros_like(flags.closed))
    monkeypatch.setattr("convsmith.interpretation.routes.RouteFlags.open", closed)
    none = audit_explainable.run(subject)
    assert none.facts["routes"] == 0
    assert none.facts["closed"] == whole["closed"] + whole["routes"] > 0
    assert "whatever the image shows" in none.sentence


def test_a_mistyped_network_is_told_the_close_ones(tmp_path, capsys):
    words = ["audit", "cs_resnet21", "--data", folder_of(tmp_path / "data"), "--out", str(tmp_path / "run")]
    assert main.main(words) == 2
    assert "'cs_resnet20'" in capsys.readouterr().err
