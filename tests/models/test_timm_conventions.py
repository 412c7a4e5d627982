"""What timm's own model tests ask, asked of every network of ours and of attached poolings.

After timm's ``tests/test_models.py``: forward, backward, configurations, features, intermediates, TorchScript, symbolic
tracing; and what its factory and hub functions need. Networks that take seconds are marked slow.
"""

import copy
import math

import pytest
import timm
import torch
from timm.models import model_entrypoint
from timm.optim import create_optimizer_v2
from torch import nn

import convsmith
from convsmith.errors import InvalidArgument

NAMES = [name for name in timm.list_models() if model_entrypoint(name).__module__.startswith("convsmith.")]
QUICK = {
    *(
        "attached_pooling",
        "cs_lenet",
        "cs_mobilenetv1_small",
        "cs_resnet20",
        "dmrnet_small",
        "igcv1_small",
        "igcv2_small",
    ),
    *("igcv3_cifar_small", "xception_igc_small", "resnet18_isqrt"),
}
#: what a network cannot do, and why
SECOND_ORDER = (
    "attached_pooling",
    "resnet18_isqrt",
    "resnet34_isqrt",
    "resnet50_isqrt",
    "resnet101_isqrt",
    "vgg16_bn_isqrt",
)
MERGED = tuple(name for name in NAMES if name.startswith("dmrnet"))
EXCEPTIONS = {
    "second-order script": (
        SECOND_ORDER,
        "TorchScript has no functions with gradients of their own; torch.export takes them",
    ),
    "merged script": (MERGED, "merge-and-run blocks take one tensor or two, which TorchScript's types do not know"),
}
CASES = [pytest.param(n, marks=() if n in QUICK else pytest.mark.slow) for n in NAMES]


def made(name, **arguments):
    torch.manual_seed(0)
    return timm.create_model(name, **arguments)


def images(model, batch=2):
    least = (model.pretrained_cfg.get("min_input_size") or (3, 64, 64))[-1]
    torch.manual_seed(1)
    return torch.randn(batch, model.in_chans, max(least, 16), max(least, 16))


def excepted(name, *keys):
    for key in keys:
        names, reason = EXCEPTIONS[key]
        if name in names:
            pytest.skip(reason)


def test_there_are_at_most_three_exceptions():
    assert len(EXCEPTIONS) <= 3
    assert all(reason and set(names) <= set(NAMES) for names, reason in EXCEPTIONS.values())


@pytest.mark.parametrize("name", CASES)
def test_forward_and_backward(name):
    model = made(name, num_classes=42).train()
    assert [p for p in model.parameters() if not p.requires_grad] == []
    out = model(images(model, 4))
    assert out.shape == (4, 42)
    out.mean().backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, f"no gradient for {key}"
    assert out.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_configuration_and_heads(name):
    model = made(name).eval()
    cfg = model.default_cfg
    state = set(model.state_dict())
    assert cfg["architecture"] == name
    for key in (
        "num_classes",
        "input_size",
        "interpolation",
        "crop_pct",
        "mean",
        "std",
        "first_conv",
        "classifier",
        "license",
    ):
        assert key in cfg, key
    assert f"{cfg['first_conv']}.weight" in state
    assert f"{cfg['classifier']}.weight" in state
    assert isinstance(model.num_classes, int)
    x = images(model)
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape[1] == model.num_features
        assert model.forward_head(features).shape[1] == model.num_classes
        pooled = model.forward_head(features, pre_logits=True)
        assert pooled.shape == (2, model.head_hidden_size)
        model.reset_classifier(0)
        assert torch.equal(model(x), pooled)
        model.reset_classifier(0, "")
        assert torch.equal(model(x), features)
        model.reset_classifier(5)
        model.reset_classifier(5)
        for headless in (made(name, num_classes=0), made(name, num_classes=0, global_pool="")):
            assert headless.eval()(x).shape[1] in (model.head_hidden_size, model.num_features)


@pytest.mark.parametrize("name", CASES)
def test_the_classifier_by_name(name):
    model = made(name, num_classes=7)
    named = model.get_classifier(name_only=True)
    assert model.get_submodule(named) is model.get_classifier()
    model.reset_classifier(9)
    assert model.num_classes == 9
    last = [m for m in model.get_classifier().modules() if isinstance(m, nn.Linear)][-1]
    assert last.out_features == 9


@pytest.mark.parametrize("name", CASES)
def test_groups_of_parameters(name):
    model = made(name)
    optimizer = create_optimizer_v2(model, "sgd", lr=1.0, layer_decay=0.5)
    scales = sorted({group["lr_scale"] for group in optimizer.param_groups})
    assert len(scales) >= 3
    assert scales[-1] == 1.0
    grouped = timm.models.group_parameters(model, model.group_matcher(coarse=True))
    assert {n for names in grouped.values() for n in names} == {n for n, _ in model.named_parameters()}


@pytest.mark.parametrize("name", CASES)
def test_intermediates(name):
    model = made(name).eval()
    x = images(model)
    infos = model.feature_info
    infos = [infos[i] for i in range(len(infos))] if isinstance(infos, list) else infos.info
    with torch.no_grad():
        last, maps = model.forward_intermediates(x)
        assert torch.equal(model.forward_head(last), model(x))
        assert len(maps) == len(infos)
        only = model.forward_intermediates(x, indices=[0, -1], intermediates_only=True, stop_early=True)
    assert [torch.equal(a, b) for a, b in zip(only, (maps[0], maps[-1]), strict=True)] == [True, True]
    for found, info in zip(maps, infos, strict=True):
        assert found.shape[1] == info["num_chs"]
        assert found.shape[-1] == math.ceil(x.shape[-1] / info["reduction"])


@pytest.mark.parametrize("name", CASES)
def test_features_only(name):
    model = made(name, features_only=True, out_indices=(0, 1)).eval()
    expected = model.feature_info.channels()
    with torch.no_grad():
        maps = model(images(made(name)))
    assert [m.shape[1] for m in maps] == expected


@pytest.mark.parametrize("name", CASES)
def test_torchscript(name):
    excepted(name, *EXCEPTIONS)
    model = made(name).eval()
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CASES)
def test_symbolic_tracing(name):
    model = made(name, num_classes=6).eval()
    x = images(model)
    traced = torch.fx.symbolic_trace(model)
    with torch.no_grad():
        torch.testing.assert_close(traced(x), model(x), rtol=1e-5, atol=1e-5)
    traced.train()(images(model, 4)).mean().backward()
    assert all(p.grad is not None for p in traced.parameters())


@pytest.mark.parametrize("name", CASES)
def test_meta_device_and_copies(name):
    with torch.device("meta"):
        empty = timm.create_model(name)
    real = made(name).eval()
    assert {k: v.shape for k, v in empty.state_dict().items()} == {k: v.shape for k, v in real.state_dict().items()}
    x = images(real)
    with torch.no_grad():
        assert torch.equal(copy.deepcopy(real)(x), real(x))


@pytest.mark.parametrize("name", CASES)
def test_an_ignored_pooling_is_an_error(name):
    with pytest.raises((InvalidArgument, AssertionError, ValueError)):
        made(name, global_pool="median")


@pytest.mark.parametrize("name", CASES)
def test_drop_path(name):
    if name in SECOND_ORDER:
        model = made(name, **({"drop_path_rate": 0.3} if "resnet" in name else {})).train()
    elif not any(hasattr(m, "drop_path") for m in made(name).modules()):
        with pytest.raises((InvalidArgument, TypeError)):
            made(name, drop_path_rate=0.3)
        return
    else:
        model = made(name, drop_path_rate=0.3).train()
    rates = [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]
    if "vgg" not in name and name != "attached_pooling":
        assert rates == sorted(rates)
        assert rates[-1] == pytest.approx(0.3)
    assert model(images(model, 4)).isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_timms_own_files_come_back_bit_for_bit(name, tmp_path):
    model = made(name, num_classes=4).eval()
    x = images(model)
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    file = tmp_path / "model.safetensors"
    overlaid = made(name, num_classes=4, pretrained=True, pretrained_cfg_overlay={"file": str(file), "num_classes": 4})
    with torch.no_grad():
        assert torch.equal(again(x), model(x))
        assert torch.equal(overlaid.eval()(x), model(x))
        assert torch.equal(convsmith.load(tmp_path).model(x), model(x))


@pytest.mark.parametrize(
    ("network", "pooling", "options"),
    [
        ("resnet18", "mpn-cov", {"dim": 8, "exponent": 0.4}),
        ("convnext_atto", "average", {}),
        ("vit_tiny_patch16_224", "isqrt-cov", {"dim": 8, "input_size": (3, 224, 224)}),
        ("cs_resnet20", "l2emg", {"dim": 6, "hidden": (5,), "drop_rate": 0.2}),
    ],
)
def test_attached_poolings_speak_timm_too(network, pooling, options, tmp_path):
    torch.manual_seed(0)
    model = convsmith.pooling.attach(timm.create_model(network, num_classes=3), pooling, **options).eval()
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    timm.models.save_for_hf(model, tmp_path, safe_serialization=True)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(x), expected)
        torch.testing.assert_close(
            torch.fx.symbolic_trace(model)(x) if network != "vit_tiny_patch16_224" else expected, expected
        )
        maps = model.forward_intermediates(x, intermediates_only=True)
        assert len(maps) == len(model.feature_info)
    assert model.get_submodule(model.get_classifier(name_only=True)) is model.get_classifier()
    grouped = timm.models.group_parameters(model, model.group_matcher())
    assert {n for names in grouped.values() for n in names} == {n for n, _ in model.named_parameters()}
    create_optimizer_v2(model, "adamw", lr=1e-3, layer_decay=0.7)
