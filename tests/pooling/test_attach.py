import copy
import json

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from convsmith.errors import InvalidArgument
from convsmith.inspection.features import head_names
from convsmith.pooling import ISQRTCOV, PooledClassifier, attach, available

TIMM = [
    ("cs_resnet20", {"num_classes": 7}),
    ("resnet10t", {}),
    ("mobilenetv3_small_050", {}),
    ("regnetx_002", {}),
    ("convnext_atto", {}),
    ("vit_tiny_patch16_224", {"img_size": 32}),
    ("deit_tiny_distilled_patch16_224", {"img_size": 32}),
    ("swin_tiny_patch4_window7_224", {"img_size": 64, "window_size": 2, "depths": (1, 1, 1, 1)}),
]
VISION = ["resnet18", "squeezenet1_1", "mobilenet_v3_small", "regnet_x_400mf", "shufflenet_v2_x0_5", "mnasnet0_5"]


@pytest.mark.parametrize(("name", "kwargs"), TIMM)
def test_any_timm_classifier(name, kwargs):
    model = attach(
        timm.create_model(name, **kwargs),
        dim=8,
        num_classes=5,
        input_size=(3, 64, 64) if "vit" not in name and "deit" not in name else None,
    ).eval()
    size = 32 if "vit" in name or "deit" in name else 64
    x = torch.randn(2, 3, size, size)
    features = model.forward_features(x)
    assert features.shape[1] == model.pooling.in_channels
    if "vit" in name or "deit" in name:
        assert features.shape[2:] == (4, 1)  # 2 x 2 patches, class tokens left out
    assert model(x).shape == (2, 5)
    assert_close(model.forward_head(features), model(x), rtol=0, atol=0)
    assert model.forward_head(features, pre_logits=True).shape == (2, 36)
    used = {n for n, p in model.named_parameters() if p.grad is not None}
    assert not used
    model.train()
    model(x).sum().backward()
    assert all(p.grad is not None for n, p in model.named_parameters() if not n.endswith(("cls_token", "dist_token")))


@pytest.mark.parametrize("name", VISION)
def test_any_torchvision_classifier(name):
    model = attach(torchvision.models.get_model(name), dim=8, num_classes=5, input_size=(3, 64, 64)).train()
    out = model(torch.randn(2, 3, 64, 64))
    assert out.shape == (2, 5)
    out.sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "alexnet",
        "vgg11",
        "densenet121",
        "efficientnet_b0",
        "googlenet",
        "inception_v3",
        "convnext_tiny",
        "swin_t",
        "vit_b_32",
    ],
)
def test_the_larger_torchvision_classifiers(name):
    kwargs = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = attach(torchvision.models.get_model(name, **kwargs), dim=8, num_classes=5).eval()
    assert model(torch.randn(1, 3, 224, 224)).shape == (1, 5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16_bn", "vgg11"])
def test_vgg_as_in_the_fine_tuning_recipe(name):
    model = attach(timm.create_model(name), "isqrt-cov", dim=256, num_classes=200, last_stride=1, head_lr_mult=20)
    seen = []
    model.pooling.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].shape))
    model.train()
    out = model(torch.randn(2, 3, 224, 224))
    out.square().mean().backward()
    assert out.shape == (2, 200)
    assert seen == [(2, 512, 14, 14)]
    assert sum(p.numel() for p in model.classifier.parameters()) == 32_896 * 200 + 200
    # the fully connected layers of 4,096 went with the old head
    assert max(p.numel() for p in model.backbone.parameters()) == 512 * 512 * 9
    assert all(p.grad is not None for p in model.parameters())
    body, head = model.parameter_groups(3e-3)
    assert (body["lr"], head["lr"]) == (3e-3, pytest.approx(6e-2))


@pytest.mark.slow
def test_torchvision_vgg_with_its_last_pooling_left_out():
    model = attach(torchvision.models.vgg16_bn(), "isqrt-cov", dim=64, num_classes=7, last_stride=1).eval()
    assert model.forward_features(torch.randn(1, 3, 96, 96)).shape == (1, 512, 6, 6)
    assert model(torch.randn(1, 3, 96, 96)).shape == (1, 7)


def tiny():
    return timm.create_model("cs_resnet20", in_chans=1, num_classes=4)


@pytest.mark.parametrize("pooling", available())
def test_every_pooling_attaches_and_its_recipe_repeats_the_call(pooling):
    model = attach(tiny(), pooling, dim=256 if pooling == "average" else 6).eval()
    assert model.num_classes == 4
    recipe = json.loads(json.dumps(model.pooling_recipe))
    again = attach(tiny(), **recipe).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(model(x), again(x))


def test_average_pooling_attached_is_the_network_itself():
    network = tiny().eval()
    x = torch.randn(2, 1, 8, 8)
    expected = network(x)
    weight, bias = network.get_classifier().weight, network.get_classifier().bias
    model = attach(network, "average").eval()
    with torch.no_grad():
        model.classifier.weight.copy_(weight)
        model.classifier.bias.copy_(bias)
    assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_options_last_stride_hidden_layers_and_dropout_are_all_used():
    model = attach(tiny(), "isqrt-cov", dim=6, last_stride=1, hidden=(9, 7), drop_rate=0.25, iterations=3)
    assert isinstance(model.pooling, ISQRTCOV)
    assert model.pooling.iterations == 3
    shapes = [tuple(m.weight.shape) for m in model.classifier if isinstance(m, nn.Linear)]
    assert shapes == [(9, 21), (7, 9), (4, 7)]
    assert [m.p for m in model.classifier if isinstance(m, nn.Dropout)] == [0.25, 0.25]
    assert model.forward_features(torch.randn(1, 1, 16, 16)).shape[2:] == (8, 8)
    assert attach(tiny(), dim=6).forward_features(torch.randn(1, 1, 16, 16)).shape[2:] == (4, 4)


def test_the_classifier_can_be_reset_and_another_pooling_attached():
    model = attach(tiny(), dim=6)
    assert model.get_classifier() is model.classifier
    model.reset_classifier(9)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 9)
    model.reset_classifier(0)
    assert model(torch.randn(2, 1, 8, 8)).shape == (2, 21)
    for form in ({}, {"drop_rate": 0.5}, {"hidden": (5, 4)}, {"hidden": (5,), "drop_rate": 0.5}):
        bare = attach(tiny(), dim=6, num_classes=0, **form)
        bare.reset_classifier(3)
        (last,) = head_names(bare)
        assert bare.get_submodule(last).out_features == 3
    other = attach(attach(tiny(), dim=6), "mpn-cov", dim=5)
    assert not isinstance(other.backbone, PooledClassifier)
    assert other(torch.randn(2, 1, 8, 8)).shape == (2, 4)


@pytest.mark.parametrize("last_stride", [None, 1])
def test_another_pooling_keeps_the_last_stage_at_full_resolution_and_says_so(last_stride):
    model = attach(attach(tiny(), dim=6, last_stride=1), "average", last_stride=last_stride).eval()
    again = attach(tiny(), **model.pooling_recipe).eval()
    again.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 1, 16, 16)
    assert torch.equal(model(x), again(x))
    assert model.feature_info[-1]["reduction"] == again.feature_info[-1]["reduction"] == 2


def test_parameter_groups_cover_everything_once_with_the_heads_factor():
    model = attach(tiny(), dim=6)
    backbone, head = model.parameter_groups(0.01, head_lr_mult=5.0)
    assert (backbone["lr"], head["lr"]) == (0.01, 0.05)
    ids = [id(p) for group in (backbone, head) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert {id(p) for p in head["params"]} == {
        id(p) for p in [*model.pooling.parameters(), *model.classifier.parameters()]
    }


def test_the_training_task_uses_the_heads_learning_rate():
    from convsmith.training import ClassificationTask

    model = attach(tiny(), dim=6, head_lr_mult=5.0)
    assert model.pooling_recipe["head_lr_mult"] == 5.0
    groups = ClassificationTask(model, 4).parameter_groups(0.01)
    assert [group["lr"] for group in groups] == [0.01, 0.05]
    assert len(ClassificationTask(tiny(), 4).parameter_groups(0.01)) == 1
    with pytest.raises(InvalidArgument, match="head_lr_mult must be a finite number above 0"):
        attach(tiny(), head_lr_mult=0.0)


def test_copies_and_modes():
    model = attach(tiny().eval(), dim=6)
    assert not model.training
    assert attach(tiny().train(), dim=6).training
    assert torch.equal(copy.deepcopy(model)(torch.ones(1, 1, 8, 8)), model(torch.ones(1, 1, 8, 8)))
    assert attach(tiny().double(), dim=6)(torch.randn(2, 1, 8, 8, dtype=torch.float64)).dtype == torch.float64


def test_gradient_reaches_the_first_layer_and_the_step_improves():
    model = attach(tiny(), dim=6)
    x, y = torch.randn(16, 1, 8, 8), torch.arange(16) % 4
    optimizer = torch.optim.SGD(model.parameter_groups(0.05), momentum=0.9)
    losses = []
    for _ in range(12):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


class NoFeatures(nn.Module):
    def forward(self, x):
        return x


BAD = [
    (lambda: attach(tiny(), "isqrt"), "did you mean 'isqrt-cov'"),
    (lambda: attach(tiny(), "average", dim=12), "keeps all channels"),
    (lambda: attach(tiny(), iteration=3), "did you mean 'iterations'"),
    (lambda: attach(tiny(), iterations=0), "at least 1"),
    (lambda: attach(NoFeatures(), num_classes=3), "forward_features"),
    (lambda: attach(tiny(), drop_rate=1.0), "drop_rate must be a finite number at least 0 and below 1"),
    (lambda: attach(tiny(), num_classes=-2), "number of classes is needed"),
    (lambda: attach(tiny(), last_stride=2), "stride 1"),
    (lambda: attach(timm.create_model("convnext_atto"), last_stride=1), "leave last_stride=None, or use one of"),
    (lambda: attach(tiny(), dim=0), "at least 1"),
    (lambda: attach(tiny()).reset_classifier(3, "avg"), "attaching another one"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_bad_input_is_one_clear_error(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_the_argument_stays_as_it_was(library):
    model = timm.create_model("resnet18", num_classes=7) if library == "timm" else torchvision.models.resnet18()
    model.layer1.eval()
    calls = []
    model.layer2.register_forward_hook(lambda *_: calls.append("layer2"))
    state = {k: v.clone() for k, v in model.state_dict().items()}
    modules = [(name, id(m), m.training, len(m._forward_hooks)) for name, m in model.named_modules()]
    attributes = set(vars(model))
    x = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        model.eval()
        before = model(x)
        model.train()
        model.layer1.eval()
    calls.clear()
    attached = attach(model, dim=8, last_stride=1)
    assert [(name, id(m), m.training, len(m._forward_hooks)) for name, m in model.named_modules()] == modules
    assert set(vars(model)) == attributes
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items() if "running" not in k)
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in attached.parameters()}
    assert not shared
    with torch.no_grad():
        model.eval()
        assert_same = model(x)
    torch.testing.assert_close(assert_same, before, rtol=0, atol=0)


def test_an_input_size_has_channels():
    with pytest.raises(InvalidArgument, match=r"input_size=\(1, 64, 64\)"):
        attach(tiny(), dim=6, input_size=(64, 64))


def test_a_wrapped_network_is_unwrapped():
    model = timm.create_model("cs_resnet20", num_classes=4, width=4).eval()
    x = torch.randn(2, 3, 16, 16)
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        made = attach(wrapped, "isqrt-cov", dim=4, input_size=(3, 16, 16)).eval()
        assert type(made.backbone) is type(model)
        assert made(x).shape == (2, 4)


@pytest.mark.parametrize("options", [{"isometric": "no"}, {"compensate": 1}, {"hidden": 8}, {"input_size": 16}])
def test_options_of_another_type_are_refused(options):
    with pytest.raises(InvalidArgument, match=next(iter(options))):
        attach(timm.create_model("cs_resnet20", num_classes=4, width=4), "isqrt-cov", dim=4, **options)
