"""Channels that go are the right ones, and what is left computes what masking computes."""

import copy

import pytest
import timm
import torch
from torch import nn

from convsmith.compression import (
    compress,
    compression_history,
    cost,
    load_packed_state,
    packed_state,
    plan_compression,
    restore_structure,
)
from convsmith.errors import RunFailed


@pytest.fixture
def network(Plain, settled):
    return settled(Plain(), torch.randn(16, 1, 8, 8))


IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def test_dead_channels_leave_without_a_trace(network):
    """Channels whose readers already read zeros can go and no output changes."""
    with torch.no_grad():
        network.fc.weight[:, 4:12] = 0
    made = compress(network, "prune-channels", example=IMAGES, keep=0.5, skip=("conv1", "conv2"))
    assert made.conv3.out_channels == 8
    assert compression_history(made)[0]["layers"]["conv3"]["kept"] == [0, 1, 2, 3, 12, 13, 14, 15]
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES), network(IMAGES))


def test_filters_go_by_their_l1_norm(network):
    with torch.no_grad():
        network.conv3.weight[2:10] *= 0.01
    made = compress(network, "prune-filters", example=IMAGES, keep=0.5, skip=("conv1", "conv2"))
    assert compression_history(made)[0]["layers"]["conv3"]["kept"] == [0, 1, *range(10, 16)]


def test_bn_scale_decides_and_coupled_layers_go_together(network):
    with torch.no_grad():
        for norm in (network.bn1, network.bn2):
            norm.weight[:8] = 0.01
            norm.weight[8:] = 1
    made = compress(network, "prune-filters", example=IMAGES, criterion="bn-scale", keep=0.5)
    layers = compression_history(made)[0]["layers"]
    kept = next(form["kept"] for form in layers.values() if "kept" in form)
    assert kept == list(range(8, 16))
    assert made.conv1.out_channels == made.conv2.out_channels == made.bn1.num_features == 8
    reference = copy.deepcopy(network)
    with torch.no_grad():
        reference.conv2.weight[:, :8] = 0
        reference.conv3.weight[:, :8] = 0
        torch.testing.assert_close(made(IMAGES), reference(IMAGES), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("callable_", [False, True])
def test_any_scorer_can_decide(network, callable_):
    wanted = torch.tensor([3, 5, 6, 11])
    scores = torch.zeros(16)
    scores[wanted] = 1
    importance = {"conv3": scores}
    made = compress(
        network,
        "prune-filters",
        example=IMAGES,
        keep=0.25,
        importance=(lambda _: importance) if callable_ else importance,
    )
    layers = compression_history(made)[0]["layers"]
    assert layers["conv3"]["kept"] == wanted.tolist()
    assert made.conv1.out_channels == 16
    assert "no scores" in str(compression_history(made)[0]["skipped"])


def test_plan_counts_equal_an_independent_count(network):
    for keep in (0.3, 0.6):
        plan = plan_compression(network, "prune-filters", example=IMAGES, keep_macs=keep)
        made = compress(network, "prune-filters", example=IMAGES, plan=plan)
        counted = cost(made, (1, 8, 8))
        assert (plan.macs[1], plan.params[1]) == (counted.macs, counted.params)


def test_round_to_and_floor(network):
    plan = plan_compression(network, "prune-filters", example=IMAGES, keep=0.3, round_to=4)
    assert all(c.setting["keep"] % 4 == 0 for c in plan.choices)
    plan = plan_compression(network, "prune-filters", example=IMAGES, keep=0.01, floor=0.5)
    assert all(c.setting["keep"] == 8 for c in plan.choices)


def test_frozen_networks_can_be_pruned_and_stay_frozen(network):
    network.requires_grad_(False)
    made = compress(network, "prune-filters", example=IMAGES, keep=0.5)
    assert not any(p.requires_grad for p in made.parameters())
    assert not any(p.requires_grad for p in network.parameters())


class Concat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3, padding=1), nn.Conv2d(1, 4, 3, padding=1)
        self.c = nn.Conv2d(10, 5, 1)

    def forward(self, x):
        return self.c(torch.cat([self.a(x).relu(), self.b(x).relu()], 1)).mean((2, 3))


class Flat(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.fc = nn.Conv2d(1, 6, 3), nn.Linear(6 * 36, 5)

    def forward(self, x):
        return self.fc(self.a(x).relu().flatten(1))


class Normed(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.norm, self.b = nn.Conv2d(1, 8, 3), nn.GroupNorm(2, 8), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        return self.b(self.norm(self.a(x))).mean((2, 3))


@pytest.mark.parametrize(("make", "layers"), [(Concat, {"a": 3, "b": 2}), (Flat, {"a": 3})])
def test_concatenation_and_flattening(make, layers):
    model = make().eval()
    made = compress(model, "prune-filters", example=IMAGES, keep=0.5)
    for name, width in layers.items():
        assert made.get_submodule(name).out_channels == width
    plan = plan_compression(model, "prune-filters", example=IMAGES, keep=0.5)
    counted = cost(made, (1, 8, 8))
    assert (plan.macs[1], plan.params[1]) == (counted.macs, counted.params)


def test_normalisation_across_channels_is_refused():
    plan = plan_compression(
        nn.Sequential(Normed(), nn.Linear(5, 5), nn.Linear(5, 3)), "prune-filters", example=IMAGES, keep=0.5
    )
    assert "normalises across channels" in plan.skipped["0.a"]


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100"])
def test_timm_networks(name):
    model = timm.create_model(name, num_classes=5).eval()
    images = torch.randn(4, 3, 32, 32)
    made = compress(model, "prune-filters", example=images, keep_macs=0.5)
    assert 0.485 <= cost(made, (3, 32, 32)).macs / cost(model, (3, 32, 32)).macs <= 0.5


def test_untraceable_networks_fail_with_a_reason(monkeypatch, network):
    from convsmith.compression.methods import removal

    def wrong(model, seen, groups, going):
        with torch.no_grad():
            model.fc.bias += 1

    monkeypatch.setattr(removal, "remove", wrong)
    assert removal.AGREE < 1
    with pytest.raises(RunFailed, match="does not compute what masking"):
        compress(network, "prune-filters", example=IMAGES, keep=0.5)


def test_a_second_order_head_keeps_its_width(settled):
    """The trunk's blocks lose channels; what enters the covariance stays, and the reason is said."""
    from convsmith.pooling import attach

    torch.manual_seed(0)
    trunk = settled(timm.create_model("cs_resnet20", num_classes=5, in_chans=1), IMAGES)
    model = attach(trunk, "isqrt-cov", dim=16).eval()
    made = compress(model, "prune-filters", example=IMAGES, keep_macs=0.6)
    assert 0.58 <= cost(made, (1, 8, 8)).macs / cost(model, (1, 8, 8)).macs <= 0.6
    assert "reshaped on the way" in compression_history(made)[0]["skipped"]["pooling.reduce.0"]
    assert made.pooling.reduce[0].out_channels == 16
    again = load_packed_state(restore_structure(model, compression_history(made)), packed_state(made)).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGES), made.eval()(IMAGES))


class Attends(nn.Module):
    """Two heads of four channels, cut out of queries, keys and values by numbers in the code; then two layers."""

    def __init__(self):
        super().__init__()
        self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)
        self.wide, self.narrow, self.head = nn.Linear(8, 32), nn.Linear(32, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = x.flatten(2).mT
        q, k, v = self.qkv(x).reshape(len(x), -1, 3, 2, 4).permute(2, 0, 3, 1, 4)
        x = x + self.out(nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(len(x), -1, 8))
        return self.head((x + self.narrow(torch.relu(self.wide(x)))).mean(1))


@pytest.mark.parametrize("method", ["prune-filters", "prune-channels"])
def test_queries_keys_and_values_are_left_alone_and_the_layers_behind_shrink(method):
    torch.manual_seed(0)
    images = torch.randn(4, 8, 3, 3)
    made = compress(Attends().eval(), method, example=images, keep_macs=0.8)
    assert made.qkv.weight.shape == (24, 8)
    assert made.wide.out_features < 32
    assert "trial removal failed" in compression_history(made)[-1]["skipped"]["qkv"]


def test_around_a_shuffle_of_channels_what_can_go_goes_and_the_rest_is_named():
    from torchvision.models.shufflenetv2 import InvertedResidual

    def make():
        torch.manual_seed(0)
        blocks = [InvertedResidual(8, 16, 2), InvertedResidual(16, 16, 1), InvertedResidual(16, 16, 1)]
        ends = [nn.Conv2d(3, 8, 3, padding=1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)]
        return nn.Sequential(*ends).eval()

    model, x = make(), torch.randn(4, 3, 16, 16)
    small = compress(model, "prune-filters", example=x, keep=0.5)
    history = compression_history(small)
    gone = {name for name, m in small.named_modules() if getattr(m, "out_channels", 0) == 4}
    assert {"2.branch2.0", "3.branch2.0"} <= gone
    assert all(name.endswith(("branch2.0", "branch2.3")) for name in gone)
    skipped = history[-1]["skipped"]
    assert "between its parts" in skipped["0"]
    assert {"1.branch1.0", "2.branch2.5", "6"} <= set(skipped)
    again = restore_structure(make(), history)
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
