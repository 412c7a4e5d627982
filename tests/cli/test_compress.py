"""``convsmith compress`` and ``convsmith export`` from the command line down to the files."""

import json

import pytest
import torch

from convsmith.cli.main import main
from convsmith.models.storage import ModelRecipe, build, load_model, save_model


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    from convsmith import data

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("runs") / "net"
    about = data.load("digits").description
    kwargs = {"num_classes": 10, "in_chans": 1}
    recipe = ModelRecipe("cs_resnet20", kwargs, description=about.to_json())
    save_model(folder, build(recipe), recipe)
    return folder


def last(capsys):
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


def test_plan_edit_compress_and_load_again(saved, tmp_path, capsys):
    plan, out = tmp_path / "plan.yaml", tmp_path / "small"
    common = ["compress", str(saved), "--data", "digits", "--method", "low-rank", "--limit", "64", "--json"]
    assert main([*common, "--keep-macs", "0.5", "--plan", str(plan), "--dry-run"]) == 0
    assert last(capsys)["keeps"]["macs"] == pytest.approx(0.5, abs=0.015)
    text = plan.read_text()
    assert "layer3.2.conv2" in text
    assert (
        main([*common, "--plan", str(plan), "--finetune-epochs", "1", "--no-compiled", "--no-onnx", "--out", str(out)])
        == 0
    )
    result = last(capsys)
    assert result["headline"]["MACs kept, %"] == pytest.approx(50, abs=1.5)
    assert {p.name for p in out.glob("sections/*.json")} >= {"20-compression.json", "21-plans.json", "22-layers.json"}
    loaded = load_model(out)
    assert [step["method"] for step in loaded.recipe.compression] == ["low-rank"]
    assert loaded.model(torch.randn(2, 1, 8, 8)).shape == (2, 10)
    assert sum((out / f"model.{end}").stat().st_size for end in ("safetensors", "json")) < sum(
        (saved / f"model.{end}").stat().st_size for end in ("safetensors", "json")
    )


def test_a_chain_ends_in_int8(saved, tmp_path, capsys):
    out = tmp_path / "small"
    words = ["compress", str(saved), "--data", "digits", "--method", "prune-filters,int8", "--keep-macs", "0.5"]
    words += ["--finetune-epochs", "1", "--limit", "64", "--no-compiled", "--no-onnx", "--out", str(out), "--json"]
    assert main(words) == 0
    found = last(capsys)["comparison"]
    assert [row["finetuned"] is None for row in found["rows"]] == [True, False, False]
    assert found["rows"][2]["finetuned"] == found["rows"][2]["accuracy"]
    assert [row["name"] for row in found["rows"]] == ["original", "prune-filters", "prune-filters,int8"]
    assert found["rows"][2]["size"]["bytes"] < found["rows"][1]["size"]["bytes"]
    assert type(load_model(out).model).__name__ == "Int8Model"


@pytest.mark.parametrize("renorm", [False, True])
def test_renorm_changes_nothing_but_the_statistics(saved, tmp_path, renorm):
    out = tmp_path / "small"
    words = ["compress", str(saved), "--data", "digits", "--method", "ternary", "--limit", "64"]
    words += ["--no-compiled", "--no-onnx"]
    assert main([*words, "--out", str(out), *(["--renorm"] if renorm else [])]) == 0
    before, after = load_model(saved).model.state_dict(), load_model(out).model.state_dict()
    norms = [name for name in before if name.endswith(("running_mean", "running_var"))]
    assert norms
    assert all(torch.equal(before[name], after[name]) != renorm for name in norms)
    assert torch.equal(before["fc.weight"], after["fc.weight"])


BAD = [
    (["--method", "low-rnk"], "low-rank"),
    (["--method", ","], "a method is needed"),
    (["--method", "low-rank", "--keep-macs", "0"], "above 0"),
    (["--method", "low-rank", "--keep-macs", "1.5"], "at most 1"),
    (["--method", "low-rank", "--keep-macs", "0.5", "--keep-params", "0.5"], "one budget"),
    (["--method", "ternary", "--keep-macs", "0.5"], "does not change"),
    (["--method", "low-rank", "--set", "decompositon=svd"], "decomposition"),
    (["--method", "low-rank", "--set", "decomposition=cp"], "decomposition has no such choice"),
    (["--method", "low-rank", "--plan", "nowhere.yaml"], "must exist"),
    (["--method", "low-rank", "--finetune-epochs", "-1"], "must be 0 or more"),
    (["--method", "int8", "--finetune-epochs", "1"], "mode=qat"),
    (["--method", "sparse", "--gradual", "--distill", "1"], "--distill, --gradual"),
    (["--method", "low-rank", "--freeze-norm"], "add --finetune-epochs"),
]


@pytest.mark.parametrize(("words", "says"), BAD)
def test_bad_input_is_refused_with_exit_code_2(saved, tmp_path, capsys, words, says):
    code = main(["compress", str(saved), "--data", "digits", "--limit", "16", "--out", str(tmp_path / "o"), *words])
    assert code == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("kind", ["onnx", "torch-export"])
def test_export_is_checked(saved, tmp_path, capsys, kind):
    assert main(["export", str(saved), "--format", kind, "--out", str(tmp_path / "e"), "--json"]) == 0
    found = last(capsys)
    assert max(found["differences"].values()) < 1e-4
    assert found["input"] == ["batch", 1, 8, 8]


def test_a_network_without_a_configuration_is_exported_at_the_size_asked_for(tmp_path, capsys, monkeypatch):
    """Regression: the error said to add --size, and came again with it."""
    (tmp_path / "bare_networks.py").write_text(
        "from torch import nn\n\ndef build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    words = ["export", "bare_networks:build", "--format", "torch-export", "--json"]
    assert main(words) == 2
    assert "add --size" in capsys.readouterr().err
    assert main([*words, "--size", "12"]) == 0
    assert last(capsys)["input"] == ["batch", 3, 12, 12]


def test_an_int8_file_is_judged_by_what_the_codes_cost(saved):
    """One that computes what the network was made of passes, one of zeros does not, whatever the codes cost."""
    from convsmith.compression import compress, compression_history, restore_structure, runtimes

    torch.manual_seed(1)
    images, network = torch.randn(16, 1, 8, 8), load_model(saved).model
    with torch.no_grad():
        network.fc.weight.mul_(0.02)  # small logits: what the codes cost is large beside them
        network.fc.bias.zero_()
    small = compress(network, "int8", example=images)
    assert runtimes.tolerance(small) == 0.05
    runtimes.note_rounding(small, network, images)
    most = runtimes.tolerance(small)
    assert 0.05 <= most <= 0.5
    for given in (images, runtimes.noise((1, 8, 8))):  # `export` has no other images
        assert max(runtimes.differences(small, network, given).values()) <= most
    assert max(runtimes.differences(small, lambda x: torch.zeros(len(x), 10), images).values()) > most
    assert runtimes.tolerance(restore_structure(network, compression_history(small))) == most
    runtimes.note_rounding(network, network, images)
    assert runtimes.tolerance(network) == 1e-4


@pytest.mark.slow
def test_the_readmes_last_line_an_int8_run_exports_to_onnx(saved, tmp_path, capsys):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    lean = tmp_path / "lean"
    words = ["--data", "digits", "--limit", "64", "--method", "low-rank,int8", "--keep-macs", "0.6", "--no-compiled"]
    assert main(["compress", str(saved), *words, "--out", str(lean), "--json"]) == 0
    found = last(capsys)
    assert (lean / "model.onnx").is_file()
    assert found["onnx"]["difference"] < 0.05
    assert {"onnxruntime 1", "eager 1"} <= set(found["comparison"]["rows"][-1]["latency"])
    assert main(["export", str(lean), "--format", "onnx", "--out", str(tmp_path / "e"), "--json"]) == 0
    assert max(last(capsys)["differences"].values()) < 0.05
    written = onnx.load(str(tmp_path / "e" / "model.onnx"))
    int8 = [x for x in written.graph.initializer if x.data_type == onnx.TensorProto.INT8 and len(x.dims) > 1]
    assert len(int8) >= 3
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in written.graph.node}


def test_export_refuses_what_differs(saved, tmp_path, capsys, monkeypatch):
    from convsmith.cli.verbs import export

    def wrong(model, images, folder):
        (folder / "x").write_text("x")
        return folder / "x", lambda x: model(x) + 1

    monkeypatch.setattr(export, "write_program", wrong)
    assert main(["export", str(saved), "--format", "torch-export", "--out", str(tmp_path / "e")]) == 1
    assert "does not compute" in capsys.readouterr().err
    assert not (tmp_path / "e").exists()


@pytest.mark.parametrize(("form", "writer"), [("onnx", torch.onnx), ("torch-export", torch.export)])
def test_an_export_that_fails_leaves_no_folder(form, writer, saved, tmp_path, capsys, monkeypatch):
    def refused(*_, **__):
        raise RuntimeError("an operator that it lacks")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writer, "export", refused)
    assert main(["export", str(saved), "--format", form]) == 1
    heard = capsys.readouterr().err
    assert "an operator that it lacks" in heard
    assert "bug" not in heard
    assert not list(tmp_path.rglob("runs/*"))
