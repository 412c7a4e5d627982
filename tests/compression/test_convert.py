"""Every method through the one verb: exactness, budgets, storage, refusals, errors."""

import copy
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from convsmith.compression import (
    available,
    compress,
    compression_history,
    cost,
    load_packed_state,
    packed_state,
    plan_compression,
    restore_structure,
)
from convsmith.compression.methods.low_rank import LowRankMethod
from convsmith.errors import InvalidArgument, MissingExtra

NAMES = [
    "binary",
    "int8",
    "interleave",
    "low-rank",
    "prune-channels",
    "prune-filters",
    "sparse",
    "structured-sparse",
    "ternary",
]
BUDGETED = ["interleave", "low-rank", "prune-channels", "prune-filters", "sparse", "structured-sparse"]
#: settings under which a method must not change the output
EXACT = {
    "low-rank": {"rank": "full"},
    "sparse": {"sparsity": 0.0},
    "structured-sparse": {"pattern": "4:4"},
    "prune-filters": {"keep": 1.0},
    "prune-channels": {"keep": 1.0},
}
CHANGING = [
    ("low-rank", {"keep_macs": 0.5}),
    ("low-rank", {"energy": 0.7}),
    ("low-rank", {"rank": 3, "decomposition": "svd"}),
    ("low-rank", {"rank": 3, "decomposition": "interpolative"}),
    ("prune-filters", {"keep_macs": 0.5}),
    ("prune-channels", {"keep_params": 0.6}),
    ("prune-filters", {"criterion": "bn-scale", "keep": 0.5}),
    ("sparse", {"sparsity": 0.6}),
    ("sparse", {"keep_params": 0.4}),
    ("structured-sparse", {}),
    ("structured-sparse", {"pattern": "block", "sparsity": 0.5}),
    ("binary", {}),
    ("ternary", {"ends": True}),
    ("int8", {}),
    ("int8", {"mode": "weight-only"}),
    ("low-rank,prune-filters,int8", {"keep_macs": 0.6}),
    ("prune-filters,ternary", {"keep": 0.5}),
]


@pytest.fixture
def network(Plain, settled):
    torch.manual_seed(3)
    return settled(Plain(), torch.randn(64, 1, 8, 8))


@pytest.fixture
def images():
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def control(settled):
    torch.manual_seed(0)
    images = torch.randn(16, 1, 8, 8)
    return settled(timm.create_model("cs_resnet20", in_chans=1, num_classes=10), images), images


def test_available_names_every_method():
    assert set(NAMES) <= set(available())


@pytest.mark.parametrize(("method", "settings"), EXACT.items())
@pytest.mark.parametrize("which", ["plain", "odd"])
def test_exact_settings_change_no_output(method, settings, which, network, images, Odd):
    model, example = (network, images) if which == "plain" else (Odd().eval(), torch.randn(4, 3, 8, 8))
    with torch.no_grad():
        torch.testing.assert_close(
            compress(model, method, example=example, **settings)(example), model(example), rtol=1e-4, atol=1e-5
        )


@pytest.mark.parametrize("method", BUDGETED)
def test_keeping_everything_changes_nothing(method, network, images):
    kept = compress(network, method, example=images, keep_macs=1.0)
    assert torch.equal(kept(images), network(images))


@pytest.mark.parametrize("method", [*BUDGETED, "binary", "ternary"])
def test_what_is_frozen_stays_frozen(network, images, method):
    network.conv2.requires_grad_(False)
    settings = {"keep_params": 0.5} if method in BUDGETED else {}
    made = compress(network, method, example=images, **settings)
    assert not any(p.requires_grad for p in made.conv2.parameters())
    assert all(p.requires_grad for p in made.conv3.parameters())


@pytest.mark.parametrize(("method", "settings"), CHANGING, ids=lambda v: str(v))
def test_input_untouched_and_file_rebuilds_identically(method, settings, network, images, tmp_path, Plain):
    network.train()
    before = copy.deepcopy(network.state_dict())
    made = compress(network, method, example=images, **settings)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert network.training
    assert made.training
    assert not compression_history(network)
    assert [r["method"] for r in compression_history(made)] == method.split(",")
    save_file(packed_state(made), tmp_path / "model.safetensors")
    (tmp_path / "recipe.json").write_text(json.dumps(compression_history(made)))
    again = restore_structure(Plain(), json.loads((tmp_path / "recipe.json").read_text()))
    load_packed_state(again, load_file(tmp_path / "model.safetensors"))
    assert compression_history(again) == compression_history(made)
    with torch.no_grad():
        assert torch.equal(again.eval()(images), made.eval()(images))
        assert not torch.equal(made(images), network.eval()(images))


@pytest.mark.parametrize("method", BUDGETED)
@pytest.mark.parametrize("kind", ["macs", "params"])
@pytest.mark.parametrize("keep", [0.3, 0.5, 0.7])
def test_budgets_hold_within_three_percent(method, kind, keep, control):
    model, images = control
    plan = plan_compression(model, method, example=images, **{f"keep_{kind}": keep})
    assert keep * 0.97 <= plan.kept(kind) <= keep + 1e-9
    blind = {"data_aware": False} if method == "interleave" else {}  # the counts are the plan's
    made = compress(model, method, example=images, plan=plan, **blind)
    counted, original = cost(made, (1, 8, 8)), cost(model, (1, 8, 8))
    if "sparse" in method:
        zeros = sum(int((p == 0).sum()) for p in made.parameters()) - sum(
            int((p == 0).sum()) for p in model.parameters()
        )
        assert plan.params == (original.params, original.params - zeros)
    else:
        assert (plan.macs[1], plan.params[1]) == (counted.macs, counted.params)


def test_pruned_networks_hold_no_masks(network, images):
    for method in ("prune-filters", "sparse"):
        made = compress(network, method, example=images)
        names = [name for name, _ in (*made.named_parameters(), *made.named_buffers())]
        assert not [n for n in names if "mask" in n or "orig" in n]
        assert not any(m._forward_pre_hooks or m._forward_hooks for m in made.modules())


@pytest.mark.parametrize("method", NAMES)
def test_odd_networks_are_compressed_or_refused_with_reasons(method, Odd):
    model, example = Odd().eval(), torch.randn(32, 3, 8, 8)
    settings = {"keep": 0.5} if "prune" in method else {}
    if method == "int8":
        quantised = compress(model, method, example=example)
        with torch.no_grad():
            assert (quantised(example) - model(example)).norm() < 0.05 * model(example).norm()
        settings = {"mode": "weight-only"}
    made = compress(model, method, example=example, **settings)
    skipped = compression_history(made)[-1]["skipped"]
    assert {"functional", "tied_a", "tied_b", "never"} <= set(skipped)
    assert all(len(reason) > 10 for reason in skipped.values())
    changed = set(compression_history(made)[-1]["layers"])
    assert changed
    assert not changed & {"tied_a", "tied_b", "never", "functional"}
    if "prune" in method:
        assert changed == {"wide", "narrow"}
        assert {"stem", "grouped", "shared", "up"} <= set(skipped)
    assert torch.isfinite(made(example)).all()


def test_result_trains(network, images):
    for method, settings in CHANGING:
        if method.endswith("int8") and settings.get("mode") is None:
            continue
        made = compress(network, method, example=images, **settings).train()
        nn.functional.cross_entropy(made(images), torch.zeros(32, dtype=torch.long)).backward()
        grads = [p.grad for p in made.parameters() if p.requires_grad]
        assert all(g is not None and torch.isfinite(g).all() for g in grads)


def test_without_an_example_noise_gives_the_shapes(network):
    made = compress(network, "low-rank")
    assert cost(made, (1, 8, 8)).macs <= 0.5 * cost(network, (1, 8, 8)).macs
    with pytest.raises(InvalidArgument, match="real images"):
        compress(network, "int8")


@pytest.mark.parametrize("method", ["low-rank", "prune-filters", "sparse", "ternary"])
def test_every_module_keeps_its_mode(method, network, images):
    network.train().bn1.eval()
    made = compress(network, method, example=images)
    again = restore_structure(network, compression_history(made))
    for model in (made, again):
        assert (model.training, model.bn1.training, model.bn2.training) == (True, False, True)


def test_wrappers_hide_no_history(network, images):
    made = compress(network, "low-rank", example=images)
    history = compression_history(made)
    assert history
    assert compression_history(nn.DataParallel(made)) == history
    again = load_packed_state(restore_structure(nn.DataParallel(network), history), packed_state(made))
    assert torch.equal(again(images), made(images))


def test_a_history_of_another_network_is_refused(network, images):
    for history in ([{"method": "low-rank"}], compression_history(compress(network, "prune-filters", keep=0.5))):
        with pytest.raises(InvalidArgument, match="of this network"):
            restore_structure(nn.Sequential(nn.Conv2d(1, 4, 3)), history)


BAD = [
    (lambda m: compress("resnet18", "sparse"), "torch.nn.Module"),
    (lambda m: compress(m, "low-rnk"), "low-rank"),
    (lambda m: compress(m, 3), "method must be a text"),
    (lambda m: compress(m, ""), "method is a name"),
    (lambda m: compress(m, "sparse", sparsty=0.5), "sparsity"),
    (lambda m: compress(m, "sparse", sparsity=1.0), "below 1"),
    (lambda m: compress(m, "sparse", sparsity=-0.1), "at least 0"),
    (lambda m: compress(m, "structured-sparse", pattern="2-4"), "n:m"),
    (lambda m: compress(m, "structured-sparse", pattern="5:4"), "n:m"),
    (lambda m: compress(m, "structured-sparse", block=(0, 4)), "block"),
    (lambda m: compress(m, "low-rank", keep_macs=0), "above 0"),
    (lambda m: compress(m, "low-rank", keep_macs=-0.5), "above 0"),
    (lambda m: compress(m, "low-rank", keep_macs=1.5), "at most 1"),
    (lambda m: compress(m, "low-rank", keep_macs=float("nan")), "keep_macs must be a finite number"),
    (lambda m: compress(m, "low-rank", keep_macs="half"), "keep_macs must be a finite number"),
    (lambda m: compress(m, "low-rank", keep_macs=0.5, keep_params=0.5), "one budget"),
    (lambda m: compress(m, "low-rank", keep_macs=0.001), "at the least it keeps"),
    (lambda m: compress(m, "prune-filters", keep_macs=0.0001), "at the least it keeps"),
    (lambda m: compress(m, "binary", keep_macs=0.5), "does not change the number of macs"),
    (lambda m: compress(m, "low-rank", rank=0), "rank"),
    (lambda m: compress(m, "low-rank", rank=1.5), "rank"),
    (lambda m: LowRankMethod(rank=True), "rank"),
    (lambda m: compress(m, "low-rank", energy=2), "energy"),
    (lambda m: compress(m, "low-rank", decomposition="cp"), "decomposition"),
    (lambda m: compress(m, "prune-filters", criterion="l2"), "criterion"),
    (lambda m: compress(m, "prune-filters", keep=0), "keep must be a finite number above 0 and at most 1"),
    (lambda m: compress(m, "int8", mode="dynamic"), "mode"),
    (lambda m: compress(m, "int8,low-rank", example=torch.randn(8, 1, 8, 8)), "nothing can follow int8"),
    (lambda m: compress(m, "low-rank", example=torch.randn(3, 3)), r"images \[B, C, H, W\]"),
    (lambda m: compress(m, "low-rank", example=[1]), "example must be Tensor"),
    (lambda m: compress(m, "low-rank", example=torch.zeros(0, 1, 8, 8)), "non-empty"),
    (lambda m: compress(nn.ReLU(), "sparse"), "nothing to compress"),
    (lambda m: compress(nn.BatchNorm2d(3), "sparse"), "nothing to compress"),
    (lambda m: compress(m, "prune-filters", importance={"conv9": torch.ones(3)}), "conv1|layer this network lacks"),
    (lambda m: compress(m, "prune-filters", importance={"conv1": torch.ones(3)}), "one finite score"),
]


@pytest.mark.parametrize("method", ["low-rank", "interleave", "prune-filters", "int8"])
def test_weights_that_are_no_numbers_are_named(method, network, images):
    with torch.no_grad():
        network.conv2.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(InvalidArgument, match=r"conv2\.weight"):
        compress(network, method, example=images)


@pytest.mark.parametrize(("call", "says"), BAD)
def test_one_clear_error_each(call, says, network):
    with pytest.raises(InvalidArgument, match=says):
        call(network)


@pytest.mark.parametrize(("method", "package"), [("prune-filters", "torch_pruning"), ("int8", "torchao")])
def test_a_missing_extra_names_its_line(method, package, network, images, monkeypatch):
    import importlib

    real = importlib.import_module

    def missing(name, *rest):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}", name=package)
        return real(name, *rest)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(MissingExtra, match=r"convsmith\[compress\]"):
        compress(network, method, example=images)
