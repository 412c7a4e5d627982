"""Verbs that list: models, methods, data, init; each for people and for machines."""

import json

import pytest

from convsmith.cli import main
from convsmith.cli.shell import settings
from convsmith.cli.verbs import methods


def said(capsys, *words):
    """Run with ``--json``, return the summary and the text before it."""
    assert main.main([*words, "--json"]) == 0
    *text, last = capsys.readouterr().out.splitlines()
    return json.loads(last), "\n".join(text)


def test_models_lists_ours_and_with_a_pattern_those_of_timm(capsys):
    summary, text = said(capsys, "models")
    names = [row["model"] for row in summary["models"]]
    assert "cs_resnet20" in names
    assert "resnet18" not in names
    assert all(name in text for name in names)
    summary, _ = said(capsys, "models", "resnet18*")
    assert {"resnet18", "resnet18d"} <= {row["model"] for row in summary["models"]}
    summary, _ = said(capsys, "models", "cs_resnet20", "--parameters")
    assert summary["models"][0]["parameters"] == 269722
    assert summary["models"][0]["MACs"] == 40551040
    summary, _ = said(capsys, "models", "cs_resnet*", "--pretrained")
    assert summary["models"] == []


def test_methods_lists_every_registry(capsys):
    summary, text = said(capsys, "methods")
    assert {"augmentation", "data set"} <= set(summary["methods"])
    assert summary["methods"]["augmentation"] == ["digits", "flip-crop", "imagenet", "none"]
    for kind, registry in methods.registries().items():
        assert kind in text
        assert all(entry.summary for entry in registry), f"a {kind} without a docstring"
    summary, _ = said(capsys, "methods", "augmentation")
    assert list(summary["methods"]) == ["augmentation"]


def test_methods_describes_the_settings_of_one(capsys):
    summary, text = said(capsys, "methods", "low-rank")
    rows = {row["setting"]: row for row in summary["settings"]["compression method"]}
    assert rows["energy"]["value"] == "a number or null"
    assert "share of each layer's energy" in rows["energy"]["meaning"]
    assert "energy" in text
    summary, _ = said(capsys, "methods", "san")
    assert summary["settings"]["adaptation method"]
    assert main.main(["methods", "lowrank"]) == 2
    assert "did you mean 'low-rank'" in capsys.readouterr().err


def test_every_method_can_be_described():
    for registry in methods.registries().values():
        for entry in registry:
            source = entry.traits.get("settings", entry.value)
            assert isinstance(methods.setting_rows(source if isinstance(source, type) else entry.value), list)


def test_data_lists_and_describes(capsys):
    summary, _ = said(capsys, "data")
    assert {"digits", "imagefolder:PATH"} <= {row["spec"] for row in summary["data"]}
    summary, text = said(capsys, "data", "digits", "--size", "16")
    about = summary["description"]
    assert (about["size"], about["channels"], len(about["classes"])) == ([16, 16], 1, 10)
    assert sum(about["counts"].values()) == 1797
    assert "16 x 16, 1 channel" in text


def test_init_lists_and_writes_a_preset_that_runs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary, _ = said(capsys, "init")
    assert summary["presets"] == list(settings.presets())
    said(capsys, "init", "train-digits", "--file", "my.yaml")
    first = (tmp_path / "my.yaml").read_text().splitlines()[0]
    assert first == "# convsmith train --config my.yaml"
    words = first.split()[2:]
    assert main.main([*words, "--epochs", "1", "--limit", "64", "--model-args", "width=4", "depth=8"]) == 0
    assert main.main(["init", "train-digits", "--file", "my.yaml"]) == 2
    assert "exists already" in capsys.readouterr().err


def test_doctor_says_what_a_bug_report_needs(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary, text = said(capsys, "doctor")
    assert summary["environment"]["versions"]["torch"] in text
    assert "processor" in text
    assert max(len(line) for line in text.splitlines()) <= 160


def test_doctor_deep_tests_each_part_and_fails_when_one_does(capsys, tmp_path, monkeypatch):
    from convsmith.cli.verbs import doctor

    monkeypatch.chdir(tmp_path)
    summary, _ = said(capsys, "doctor", "--deep")
    assert {"cpu", "bf16", "compile", "gloo", "write"} <= set(summary["checks"])
    assert all(verdict in ("ok", "none") for verdict, _ in summary["checks"].values())
    assert list(tmp_path.iterdir()) == []

    def broken(device):
        raise ArithmeticError("wrong sum")

    monkeypatch.setattr(doctor, "_convolution", broken)
    assert main.main(["doctor", "--deep"]) == 1
    heard = capsys.readouterr()
    assert "cpu          fail  ArithmeticError: wrong sum" in heard.out
    assert "the self-test failed" in heard.err


@pytest.mark.parametrize("words", [("report",), ("report", "--out", "x.html")])
def test_report_of_nothing_is_refused(words, capsys):
    assert main.main(list(words)) == 2
    assert "at least one run folder" in capsys.readouterr().err


def test_every_setting_of_every_method_has_a_meaning(capsys):
    from convsmith.cli.verbs import methods

    without = set()
    for registry in methods.registries().values():
        for entry in registry:
            for described in methods._describe(entry.name, methods.registries())["settings"].values():
                without |= {f"{entry.name} {row['setting']}" for row in described if not row["meaning"]}
    assert not without
