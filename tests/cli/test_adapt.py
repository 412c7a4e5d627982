"""``convsmith adapt`` from end to end: files written, labels kept out, bad input with code 2 before training."""

import csv
import json

import pytest

from convsmith.adaptation import adapt
from convsmith.adaptation.inputs import resolve
from convsmith.cli.main import main
from convsmith.cli.reports.adaptation_report import _MEASURED, sections
from tests.adaptation.worlds import network, world

DIGITS = [
    "adapt",
    "--source",
    "mnist-5k",
    "--target",
    "digits",
    "--size",
    "16",
    "--model",
    "cs_lenet",
    "--device",
    "cpu",
]
SHORT = ["--steps", "12", "--lr", "0.05", "--set", "hidden=[4]"]


def test_a_run_writes_model_predictions_and_report(tmp_path, capsys):
    out = tmp_path / "run"
    assert main([*DIGITS, *SHORT, "--target-classes", "0-4", "--use-target-labels", "--out", str(out), "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert 0 <= summary["measurements"]["oracle_accuracy"] <= 1
    rows = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(rows) == 901  # every UCI image of the digits 0 to 4
    assert {"model.safetensors", "model.json", "result.json", "report.html", "config.yaml"} <= {
        p.name for p in out.iterdir()
    }
    page = (out / "report.html").read_text()
    assert "Class weights" in page
    assert "Oracle accuracy uses the target" in page
    # the adapted model is a model like any other
    assert main(["evaluate", "--checkpoint", str(out), "--data", "digits", "--size", "16"]) == 0


def test_the_report_says_what_chose_the_step_and_what_the_alarms_are():
    common = {"reference": None, "use_target_labels": True, "steps": 4, "lr": 0.05, "batch_size": 12, "device": "cpu"}
    for validator, words in (("oracle", "the step was chosen by it"), ("infomax", "nothing was chosen by it")):
        result = adapt(network(), *world(), variant="paper", hidden=(4,), validator=validator, **common)
        made = sections(result, resolve(*world()))
        assert words in made["50-adaptation"].text[-1]
        caption = made["51-class-weights"].tables[0].caption
        assert "Mean 1" not in caption  # the paper's sum to 1
    assert "validator" in _MEASURED["negative_transfer_alarm"]


def test_without_evaluate_no_target_label_is_measured(tmp_path, capsys):
    out = tmp_path / "run"
    arguments = [*DIGITS, *SHORT, "--method", "dann", "--no-reference", "--validator", "infomax", "--out", str(out)]
    assert main([*arguments, "--json"]) == 0
    text = capsys.readouterr().out + (out / "result.json").read_text() + (out / "history.jsonl").read_text()
    assert "oracle" not in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--method", "sann"], "did you mean 'san'"),
        (["--validator", "infomx"], "did you mean 'infomax'"),
        (["--augment", "imagnet"], "did you mean 'imagenet'"),
        (["--validator", "oracle"], "--use-target-labels"),
        (["--target-classes", "0,eleven"], "no such class"),
        (["--set", "entropi=1"], "did you mean 'entropy'"),
        (["--set", "variant=cafe"], "one of paper, caffe, pytorch"),
        (["--set", "variant=caffe", "--method", "dann"], "has no such setting"),
        (["--batch-size", "1"], "at least 2"),
        (["--steps", "0"], "must be a whole number at least 1"),
        (["--source", "digitz"], "did you mean 'digits'"),
    ],
)
def test_bad_input_ends_with_code_2_before_training(tmp_path, capsys, flags, words):
    out = tmp_path / "run"
    assert main([*DIGITS, "--steps", "12", "--out", str(out), *flags]) == 2
    assert words in capsys.readouterr().err
    assert not (out / "checkpoints").exists()
