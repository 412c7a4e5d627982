"""Interleaving by projection: exact where the kernel has the structure, skipped where there is none."""

import copy

import pytest
import timm
import torch
from torch import nn

from convsmith.compression import (
    InterleavedGroupConv2d,
    composite_kernel,
    compress,
    compression_history,
    cost,
    load_packed_state,
    packed_state,
    plan_compression,
    restore_structure,
)
from convsmith.compression.methods.chain_layers import projected
from convsmith.errors import InvalidArgument

IMAGES = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def network(Plain, settled):
    torch.manual_seed(0)
    return settled(Plain(), IMAGES)


def test_a_kernel_with_the_structure_is_kept_exactly(network):
    chain = InterleavedGroupConv2d(4, 4, 3)
    with torch.no_grad():
        network.conv2.weight.copy_(composite_kernel(chain))
    made = compress(network, "interleave", example=IMAGES, energy=0.999, backend="group")
    assert list(compression_history(made)[0]["layers"]) == ["conv2"]
    assert made.conv2.chain.primary == chain.primary
    assert made.conv2.order is None
    with torch.no_grad():
        torch.testing.assert_close(made(IMAGES), network(IMAGES), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{"keep_macs": 0.5}, {"keep_params": 0.6}, {"members": 4}])
def test_rebuilt_from_its_recipe(network, settings, Plain):
    made = compress(network, "interleave", example=IMAGES, backend="group", **settings)
    again = load_packed_state(restore_structure(Plain(), compression_history(made)), packed_state(made)).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGES), made.eval()(IMAGES))
    biases = [p for name, p in made.conv3.named_parameters() if name.endswith("bias")]
    assert sum(p.numel() for p in biases) == 16


def test_plan_counts_are_those_of_the_result(network):
    for keep in (0.4, 0.7):
        plan = plan_compression(network, "interleave", example=IMAGES, keep_macs=keep)
        made = compress(network, "interleave", example=IMAGES, plan=plan)
        counted = cost(made, (1, 8, 8))
        assert plan.macs[1] == counted.macs <= keep * cost(network, (1, 8, 8)).macs
        assert plan.params[1] == counted.params == sum(p.numel() for p in made.parameters())


def test_data_aware_projection_is_better_on_its_images(network):
    error = {}
    for aware in (True, False):
        made = compress(network, "interleave", example=IMAGES, members=4, data_aware=aware, skip=("conv3",))
        with torch.no_grad():
            error[aware] = (made(IMAGES) - network(IMAGES)).norm()
    assert error[True] < error[False]


def test_outputs_in_any_order_find_their_blocks():
    """Rows of one block are multiples of each other, whatever numbers they have."""
    generator = torch.Generator().manual_seed(0)
    base, factors = torch.randn(4, 12, generator=generator), torch.rand(4, 6, 1, generator=generator) + 0.5
    rows = (base[:, None] * factors).flatten(0, 1)[torch.randperm(24, generator=generator)]
    conv = nn.Conv2d(12, 24, 1)
    conv.weight.data = rows[:, :, None, None]
    x, error = torch.randn(2, 12, 5, 5, generator=generator), {}
    setting = {"partitions": [2, 6], "out_partitions": [4, 6], "backend": "auto"}
    for ordered in (True, False):
        made = projected(conv, {**setting, "ordered": ordered}, None)
        assert made.in_order is not ordered
        with torch.no_grad():
            error[ordered] = float((made(x) - conv(x)).norm() / conv(x).norm())
    assert error[True] < 1e-5
    assert error[False] > 0.1


def test_some_rows_stay_dense_and_all_are_handed_on_in_order():
    conv, moment = nn.Conv2d(8, 14, 1), torch.eye(8, dtype=torch.float64)
    setting = {"partitions": [4, 2], "out_partitions": [5, 2], "dense": 4, "backend": "auto", "ordered": True}
    made = projected(conv, setting, moment)
    x = torch.randn(2, 8, 3, 3)
    dense = made.order < 4
    assert int(dense.sum()) == 4
    with torch.no_grad():
        torch.testing.assert_close(made(x)[:, dense], conv(x)[:, dense], rtol=1e-5, atol=1e-5)


def test_what_cannot_be_interleaved_says_why():
    model = nn.Sequential(
        nn.Conv2d(4, 8, (3, 1), padding="same"),
        nn.Conv2d(8, 8, 3, groups=2),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular"),
        nn.Conv2d(8, 7, 1),
        nn.Conv2d(7, 12, 3),
        nn.Flatten(),
    )
    plan = plan_compression(model, "interleave", example=torch.randn(2, 4, 12, 12), members=2)
    text = str(plan.skipped)
    for word in ("'same', not a number", "grouped already", "circular", "no partition of 2 of its 8 to 7"):
        assert word in text
    with pytest.raises(InvalidArgument, match="member"):
        compress(model, "interleave", members=0)
    with pytest.raises(InvalidArgument, match="backend"):
        compress(model, "interleave", backend="magic")
    with pytest.raises(InvalidArgument, match="not both"):
        compress(model, "interleave", members=2, energy=0.5)


def test_a_rectangular_layer_is_interleaved_and_rebuilt():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, (5, 1), stride=(1, 2), padding=(2, 0)))
    x = torch.randn(4, 3, 12, 12)
    made = compress(model, "interleave", example=x, members=4)
    twin = restore_structure(copy.deepcopy(model), compression_history(made))
    twin.load_state_dict(made.state_dict())
    assert made(x).shape == model(x).shape
    torch.testing.assert_close(twin(x), made(x), rtol=1e-5, atol=1e-5)


def test_it_trains(network):
    made = compress(network, "interleave", example=IMAGES, members=4).train()
    nn.functional.cross_entropy(made(IMAGES), torch.zeros(16, dtype=torch.long)).backward()
    assert all(torch.isfinite(p.grad).all() for p in made.parameters())


def test_pruning_after_interleaving_is_refused(network):
    with pytest.raises(InvalidArgument, match="prune first"):
        compress(network, "interleave,prune-filters", example=IMAGES, members=4)
    made = compress(network, "prune-filters,interleave", example=IMAGES, keep=0.5, members=2)
    assert torch.isfinite(made(IMAGES)).all()


@pytest.mark.parametrize("kind", ["macs", "params"])
def test_every_reachable_budget_is_met(network, kind, settled):
    """Chains alone come in few sizes: without dense channels most of these budgets are missed by far."""
    control = settled(timm.create_model("cs_resnet20", in_chans=1, num_classes=10), IMAGES)
    partly = 0
    for model, keeps in ((network, range(40, 100, 5)), (control, (40, 86, 93, 99))):
        total = getattr(cost(model, (1, 8, 8)), kind)
        for keep in keeps:
            share = keep / 100
            plan = plan_compression(model, "interleave", example=IMAGES, **{f"keep_{kind}": share})
            assert 0.97 * share <= plan.kept(kind) <= share, (keep, plan.text())
            partly += any("dense" in setting for setting in plan.settings().values())
        made = compress(model, "interleave", example=IMAGES, plan=plan, data_aware=False)
        counted = cost(made, (1, 8, 8))
        assert (counted.macs, counted.params) == (plan.macs[1], plan.params[1])
        assert 0.97 * share * total <= getattr(counted, kind) <= share * total
    assert partly > 4


def test_a_partly_dense_layer_holds_its_dense_rows_exactly(network, Plain):
    plan = plan_compression(network, "interleave", example=IMAGES, members=4)
    setting = {"partitions": [4, 4], "out_partitions": [4, 2], "dense": 8}
    made = compress(network, "interleave", example=IMAGES, plan=plan.with_choice("conv3", setting), backend="group")
    x = torch.randn(3, 16, 8, 8)
    with torch.no_grad():
        dense = torch.arange(16) < 8 if made.conv3.order is None else made.conv3.order < 8
        torch.testing.assert_close(made.conv3(x)[:, dense], network.conv3(x)[:, dense], rtol=1e-4, atol=1e-5)
        assert made.conv3(x).shape == network.conv3(x).shape
        assert not torch.allclose(made.conv3(x)[:, 8:], network.conv3(x)[:, 8:], atol=1e-3)
    again = load_packed_state(restore_structure(Plain(), compression_history(made)), packed_state(made)).eval()
    with torch.no_grad():
        assert torch.equal(again(IMAGES), made.eval()(IMAGES))
    nn.functional.cross_entropy(made.train()(IMAGES), torch.zeros(16, dtype=torch.long)).backward()
    assert made.conv3.dense.weight.grad.abs().sum() > 0
    for bad in (-1, 16, 1.5):
        with pytest.raises(InvalidArgument, match="dense must be a whole number"):
            compress(network, "interleave", example=IMAGES, plan=plan.with_choice("conv3", {**setting, "dense": bad}))


def test_a_layer_on_windows_is_counted_on_all_of_them():
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            parts = x.unflatten(2, (2, -1)).movedim(2, 1).flatten(0, 1)
            return self.conv(parts).unflatten(0, (len(x), 2)).mean((1, 3, 4))

    images = torch.randn(2, 8, 8, 8)
    plan = plan_compression(Windows(), "interleave", example=images, keep_macs=0.6)
    made = compress(Windows(), "interleave", example=images, plan=plan)
    assert plan.macs[1] == cost(made, (8, 8, 8)).macs
