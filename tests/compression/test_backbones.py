"""Every method on networks of timm and torchvision at 64x64: budget, exact counts, the way to disk and back."""

import json

import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file

from convsmith.compression import (
    LinearChain,
    compress,
    compression_history,
    cost,
    load_packed_state,
    packed_state,
    plan_compression,
    restore_structure,
    size,
)
from convsmith.errors import ConvsmithError

SHAPE = (3, 64, 64)
EVERY = [
    ("low-rank", {"keep_macs": 0.5}),
    ("interleave", {"keep_macs": 0.5, "data_aware": False, "backend": "group"}),
    ("prune-filters", {"keep_macs": 0.5}),
    ("prune-channels", {"keep_params": 0.6}),
    ("sparse", {"keep_params": 0.5}),
    ("structured-sparse", {}),
    ("int8", {}),
    ("int8", {"mode": "weight-only"}),
    ("ternary", {}),
    ("binary", {}),
]
#: networks and what is too slow for them here (checked by hand: minutes each)
NETWORKS = {
    "timm resnet18": (lambda: timm.create_model("resnet18", num_classes=10, zero_init_last=False), ()),
    "resnet18": (lambda: torchvision.models.resnet18(num_classes=10), ()),
    "mobilenet_v2": (lambda: torchvision.models.mobilenet_v2(num_classes=10), ()),
    "vgg11_bn": (lambda: torchvision.models.vgg11_bn(num_classes=10), ("low-rank", "sparse")),
    "densenet121": (lambda: torchvision.models.densenet121(num_classes=10), ("prune-channels", "interleave")),
    "squeezenet1_1": (lambda: torchvision.models.squeezenet1_1(num_classes=10), ()),
}


def by_hand(model, image):
    """Multiply-accumulates of every layer from its weight and the size of its output, without any dispatch."""
    total = 0

    def add(layer, _args, out):
        nonlocal total
        weights = list(layer.weights) if isinstance(layer, LinearChain) else [layer.weight]
        places = out[0, 0].numel() if out.dim() == 4 else 1
        total += places * sum(w.numel() for w in weights)

    kinds = (torch.nn.Conv2d, torch.nn.Linear, LinearChain)
    layers = [m for m in model.modules() if isinstance(m, kinds)]
    handles = [m.register_forward_hook(add) for m in layers]
    with torch.no_grad():
        model.eval()(image)
    for handle in handles:
        handle.remove()
    return total


def check(make, method, settings, tmp_path):
    torch.manual_seed(0)
    images = torch.randn(8, *SHAPE)
    model = make().train()
    with torch.no_grad():
        model(images)  # statistics for the normalisations
    model.eval()
    made = compress(model, method, example=images, **settings)
    before, after = cost(model, SHAPE), cost(made, SHAPE)
    for kind in ("macs", "params"):
        keep = settings.get(f"keep_{kind}")
        if keep is not None and method != "sparse":
            assert 0.97 * keep <= getattr(after, kind) / getattr(before, kind) <= keep
    if method == "sparse":
        zeros = sum(
            int((p == 0).sum()) - int((q == 0).sum())
            for p, q in zip(made.parameters(), model.parameters(), strict=True)
        )
        assert 0.97 * 0.5 <= 1 - zeros / before.params <= 0.5
    assert not [name for name, _ in made.named_buffers() if "mask" in name]
    done = compression_history(made)[-1]
    assert done["layers"]
    assert all(len(reason) > 10 for reason in done["skipped"].values())
    if method != "int8":  # a graph of operators holds no layers to count by hand
        assert after.macs == by_hand(made, images[:1])
        assert after.params == sum(p.numel() for p in made.parameters())
    save_file(packed_state(made), tmp_path / "model.safetensors")
    assert size(made, SHAPE).bytes == (tmp_path / "model.safetensors").stat().st_size
    again = restore_structure(make(), json.loads(json.dumps(compression_history(made))))
    load_packed_state(again, load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        expected = made.eval()(images)
        assert torch.isfinite(expected).all()
        assert torch.equal(again.eval()(images), expected)
        if method == "int8":
            assert (expected - model(images)).norm() < 0.1 * model(images).norm()
    return model, made


@pytest.mark.parametrize(("method", "settings"), [EVERY[2], EVERY[5], EVERY[7], EVERY[9]], ids=str)
def test_squeezenet(method, settings, tmp_path):
    check(NETWORKS["squeezenet1_1"][0], method, settings, tmp_path)


def test_int8_where_one_activation_serves_a_whole_block(tmp_path):
    check(NETWORKS["resnet18"][0], "int8", {}, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "method", "settings"),
    [
        pytest.param(make, method, settings, id=f"{name}-{method}-{settings}")
        for name, (make, slower) in NETWORKS.items()  # slower: minutes on one core
        for method, settings in EVERY
        if method not in slower
    ],
)
def test_every_method_on(make, method, settings, tmp_path):
    check(make, method, settings, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["interleave", "low-rank", "prune-filters", "sparse"])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_budgets_on_resnet18(method, kind):
    torch.manual_seed(0)
    model = NETWORKS["timm resnet18"][0]().eval()
    images = torch.randn(2, *SHAPE)
    for keep in (0.2, 0.4, 0.6, 0.8, 0.95):
        plan = plan_compression(model, method, example=images, **{f"keep_{kind}": keep})
        assert 0.97 * keep <= plan.kept(kind) <= keep, (keep, plan.kept(kind))


#: networks of the field at 0.7 of the MACs; 64 x 64 but for those whose code fixes the size
BACKBONES = {
    "resnet18": 64,
    "resnet50": 64,
    "mobilenetv3_large_100": 64,
    "tf_efficientnet_lite0": 64,
    "convnext_tiny": 64,
    "regnety_008": 64,
    "densenet121": 64,
    "vit_tiny_patch16_224": 224,
    "deit_tiny_patch16_224": 224,
    "swin_tiny_patch4_window7_224": 224,
    "shufflenet_v2_x1_0": 64,
    "lraspp_mobilenet_v3_large": 64,
    "ssdlite320_mobilenet_v3_large": 64,
}
WAYS = ["low-rank", "interleave", "prune-filters", "prune-channels", "sparse", "structured-sparse", "int8", "ternary"]


def backbone(name):
    torch.manual_seed(0)
    if name == "lraspp_mobilenet_v3_large":
        return torchvision.models.segmentation.lraspp_mobilenet_v3_large(weights_backbone=None)
    if name == "ssdlite320_mobilenet_v3_large":
        return torchvision.models.detection.ssdlite320_mobilenet_v3_large(weights_backbone=None).backbone
    if name.startswith("shufflenet"):
        return torchvision.models.shufflenet_v2_x1_0()
    return timm.create_model(name)


def tensors(output):
    if isinstance(output, torch.Tensor):
        return [output]
    return [t for part in (output.values() if isinstance(output, dict) else output) for t in tensors(part)]


@pytest.mark.slow
@pytest.mark.parametrize("method", WAYS)
@pytest.mark.parametrize("name", BACKBONES)
def test_backbones_run_within_budget_or_are_refused_layer_by_layer(name, method, tmp_path):
    shape = (3, BACKBONES[name], BACKBONES[name])
    images = torch.randn(2, *shape)
    model = backbone(name).eval()
    budget = {} if method in ("int8", "ternary", "structured-sparse") else {"keep_macs": 0.7}
    refused = None
    try:
        made = compress(model, method, example=images, **budget)
    except ConvsmithError as error:
        refused = error
    if refused is not None:  # the reasons name layers, or the operator that cannot be followed
        assert refused.given
        assert "left alone" in str(refused) or "cannot" in str(refused) or "could not" in str(refused)
        return
    if budget and method != "sparse":
        kept = cost(made, shape).macs / cost(model, shape).macs
        assert 0.99 * 0.7 <= kept <= 0.7, kept
    history = compression_history(made)
    assert all(len(reason) > 5 for reason in history[-1]["skipped"].values())
    save_file(packed_state(made), tmp_path / "model.safetensors")
    again = restore_structure(backbone(name).eval(), json.loads(json.dumps(history)))
    load_packed_state(again, load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        for one, other in zip(tensors(made.eval()(images)), tensors(again.eval()(images)), strict=True):
            assert torch.equal(one, other)
