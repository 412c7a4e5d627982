"""The transfer studies: one run is repeatable and honest about its target set; the rules decide as they are written."""

import json

import pytest
import torch

from experiments.studies import (
    digit_transfer,
    transfer_convergence,
    transfer_features,
    transfer_methods,
    transfer_target_classes,
)
from experiments.studies.contract import STUDIES, Study
from experiments.studies.digit_transfer import DIRECTIONS, Recipe, last_accuracy, run, selected_accuracy, target_set

TINY = Recipe(steps=8, batch=16, evaluate_every=4, hidden=(4,))
ROW = {"source_accuracy": 1.0, "entropy": 0.1, "infomax": -1.0, "bnm": 0.5, "snd": 5.0, "effective_classes": 5.0}


def cell(accuracy, **changes):
    return {"steps": [400], "curve": [{**ROW, "accuracy": accuracy, **changes}], "agreement": 0.8, "moved": 0.1}


def test_target_sets():
    assert target_set("first-3") == (0, 1, 2)
    assert len(set(target_set("random-5@1"))) == 5
    assert target_set("random-5@1") != target_set("random-5@2")


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_a_run_is_json_and_repeats(direction):
    first = run(direction, "first-3", "san", 0, TINY)
    assert json.loads(json.dumps(first)) == run(direction, "first-3", "san", 0, TINY)
    assert len(first["curve"]) == 2
    assert 0 <= first["auroc"] <= 1
    base = run(direction, "first-3", "source-only", 0, TINY)
    assert base["steps"] == first["steps"] == [4, 8]


def test_source_only_is_one_network_for_all_target_sets():
    few, many = (run("MNIST to UCI", spec, "source-only", 3, TINY) for spec in ("first-3", "first-10"))
    assert [r["source_accuracy"] for r in few["curve"]] == [r["source_accuracy"] for r in many["curve"]]
    digit_transfer.source_only.cache_clear()
    assert run("MNIST to UCI", "first-3", "source-only", 3, TINY) == few


def test_selection_uses_the_validator_behind_the_guard():
    rows = [
        {
            **ROW,
            "accuracy": 0.3,
            "infomax": -9.0,
            "source_accuracy": 0.5,
        },  # the best score, but the source is forgotten
        {**ROW, "accuracy": 0.8, "infomax": -2.0},
        {**ROW, "accuracy": 0.6, "infomax": -1.0},
    ]
    own, base = {"curve": rows}, cell(0.5)
    assert selected_accuracy(own, base) == 80.0
    assert last_accuracy(own) == 60.0


def accuracies(dann, san, base=((60, 61, 62), (60, 61, 63), (60, 62, 61))):
    found = {}
    for direction in DIRECTIONS:
        for k, size in enumerate((10, 5, 3)):
            found[direction, size, "source-only"] = list(base[k])
            found[direction, size, "dann"] = [b + dann[k] + 0.1 * i for i, b in enumerate(base[k])]
            found[direction, size, "san"] = [b + san[k] - 0.1 * i for i, b in enumerate(base[k])]
    return found


def test_the_rule_of_target_classes():
    assert transfer_target_classes.decide(accuracies((10, -10, -20), (5, 15, 10)))[0] == "reproduced"
    assert transfer_target_classes.decide(accuracies((10, -10, -20), (5, -5, -5)))[0] == "partly"
    assert transfer_target_classes.decide(accuracies((0, 10, 20), (0, -5, -5)))[0] == "not reproduced"


def test_the_rule_of_methods():
    def cells(dann, san):
        made = {}
        for direction in DIRECTIONS:
            for spec in ("first-10", "first-5", "first-3"):
                made[direction, spec, "source-only"] = [cell(0.60), cell(0.62), cell(0.61)]
                made[direction, spec, "dann"] = [cell(0.60 + dann), cell(0.625 + dann), cell(0.61 + dann)]
                made[direction, spec, "san"] = [cell(0.60 + san), cell(0.62 + san), cell(0.615 + san)]
        return made

    sets = ("first-10", "first-5", "first-3")
    assert transfer_methods.decide(cells(-0.1, 0.1), sets)[0] == "reproduced"
    assert transfer_methods.decide(cells(-0.08, 0.01), sets)[0] == "partly"  # ahead by too little
    assert transfer_methods.decide(cells(-0.1, -0.1), sets)[0] == "not reproduced"


def test_unsteadiness_is_the_mean_change():
    assert transfer_convergence.unsteadiness([1.0, 3.0, 2.0]) == 1.5


def test_studies_are_registered_with_claim_and_rule():
    names = [n for n in STUDIES.names() if n.startswith("transfer/")]
    assert names == [
        "transfer/ablation",
        "transfer/convergence",
        "transfer/features",
        "transfer/methods",
        "transfer/selection",
        "transfer/stamps",
        "transfer/styles",
        "transfer/target-classes",
    ]
    for name in names:
        assert "eproduced if" in STUDIES.entry(name).traits["rule"]


@pytest.mark.parametrize("name", ["transfer/ablation", "transfer/convergence", "transfer/target-classes"])
def test_a_study_runs_to_a_verdict_on_tiny_runs(name, monkeypatch):
    module = {
        "ablation": "transfer_ablation",
        "convergence": "transfer_convergence",
        "target-classes": "transfer_target_classes",
    }
    monkeypatch.setattr(
        f"experiments.studies.{module[name.split('/')[1]]}.run",
        lambda d, s, m, n, *_, **__: {
            "steps": [100, 200, 300, 400],
            "curve": [{**ROW, "accuracy": 0.5 + 0.01 * n + 0.02 * i + 0.1 * (m == "san")} for i in range(4)],
        },
    )
    outcome = STUDIES.entry(name).value(Study(name, True, [0, 1, 2], "cpu"))
    assert outcome.verdict in ("reproduced", "partly", "not reproduced")
    assert outcome.tables
    assert all(f.svg.startswith("<svg") for f in outcome.figures)


def test_nearest_class_is_the_mean_with_the_smallest_angle():
    source = torch.tensor([[1.0, 0.0], [3.0, 0.2], [0.0, 2.0], [0.1, 1.0]])
    labels = torch.tensor([0, 0, 2, 2])
    target = torch.tensor([[5.0, 1.0], [1.0, 5.0]])
    assert transfer_features.nearest_classes(target, source, labels, 3).tolist() == [0, 2]
    assert transfer_features.nearest_classes(-target, source, labels, 3).tolist() == [
        2,
        0,
    ]  # class 1 has no image to be near to
