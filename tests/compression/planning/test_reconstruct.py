"""Re-solved weights: nearer to the original without labels, in every method's layers; what is frozen stays."""

import copy
import dataclasses

import pytest
import torch
from torch import nn

from convsmith.compression import compress, compression_history, plan_compression
from convsmith.compression.methods.chain_layers import projected
from convsmith.compression.methods.decomposition import factor
from convsmith.compression.planning import agreement as planning_agreement
from convsmith.compression.planning.agreement import agreement, predicted_agreement
from convsmith.compression.planning.reconstruct import reconstruct
from convsmith.compression.planning.replacement import replace
from convsmith.compression.planning.shortcuts import shortcuts
from convsmith.errors import InvalidArgument
from convsmith.inspection.trace import trace_layers


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.conv3 = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 6)

    def forward(self, x):
        x = torch.relu(self.norm1(self.conv1(x)))
        x = x + torch.relu(self.conv2(x))
        x = torch.relu(self.conv3(torch.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


def images(count, seed):
    """Smooth images: their patches have few directions, as those of photographs."""
    noise = torch.randn(count, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
    return nn.functional.interpolate(noise, size=(12, 12), mode="bilinear")


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = Plain()
    for seed in range(4):
        made(images(32, seed))
    return made.eval()


@pytest.mark.parametrize(
    ("sizes", "decomposition"),
    [
        ((12, 8, 1), "interpolative"),
        ((8, 12, 1), "interpolative"),
        ((8, 8, 3), "svd"),
        ((8, 8, 3), "spatial"),
        ((8, 8, 3), "tucker"),
        ((8, 8, 1), "interleaved"),
    ],
)
def test_a_shift_is_added_to_the_outputs(sizes, decomposition):
    into, out, side = sizes
    conv, x, lost = nn.Conv2d(into, out, side), torch.randn(2, into, 5, 5), torch.randn(out)
    sizes = {"partitions": [4, 2], "out_partitions": [2, 2], "dense": 4, "backend": "auto", "ordered": True}
    made = projected(conv, sizes, None) if decomposition == "interleaved" else factor(conv, decomposition, 3)
    with torch.no_grad():
        before = made(x)
        made.shift(lost)
        torch.testing.assert_close(made(x), before + lost.view(1, -1, 1, 1), rtol=1e-5, atol=1e-5)


def test_a_layer_with_a_bias_loses_no_mean():
    """A basis of the outputs' spread knows nothing of their mean."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    fit = images(96, 0) + 5
    made = compress(model, "low-rank", example=fit, rank=1, reconstruct=True)
    with torch.no_grad():
        # every eighth image is left out
        seen = fit[torch.arange(96) % 8 != 7]
        torch.testing.assert_close(made(seen).mean(0), model(seen).mean(0), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("method", ["low-rank", "prune-filters", "prune-channels", "interleave"])
def test_less_is_lost_on_new_images(model, method):
    before = copy.deepcopy(model.state_dict())
    fit, new = images(96, 10), images(64, 11)
    plain = compress(model, method, example=fit, keep_macs=0.6, reconstruct=False)
    solved = compress(model, method, example=fit, keep_macs=0.6)

    def error(other):
        with torch.no_grad():
            return float((other(new) - model(new)).norm() / (model(new) - model(new).mean(0)).norm())

    assert error(solved) < 0.9 * error(plain)
    (entry,) = compression_history(solved)
    assert entry["reconstructed"] == 84
    assert 0 <= entry["agreement"] <= 1
    assert "agreement" not in compression_history(plain)[0]
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values(), strict=True))
    assert {n: p.shape for n, p in plain.named_parameters()} == {n: p.shape for n, p in solved.named_parameters()}


def test_an_unchanged_network_is_left_alone_bit_for_bit(model):
    twin = copy.deepcopy(model)
    assert reconstruct(model, twin, trace_layers(model, images(4, 0)), images(16, 0)) == {}
    assert all(torch.equal(a, b) for a, b in zip(twin.parameters(), model.parameters(), strict=True))


def test_frozen_parameters_stay_as_they_are(model):
    frozen = copy.deepcopy(model)
    frozen.conv3.requires_grad_(False)
    frozen.head.requires_grad_(False)
    made = compress(frozen, "low-rank", example=images(96, 3), keep_macs=0.6, skip=("conv3", "head"))
    assert torch.equal(made.conv3.weight, model.conv3.weight)
    assert torch.equal(made.head.weight, model.head.weight)
    assert not made.conv3.weight.requires_grad
    chained = compress(frozen, "low-rank", example=images(96, 3), rank=2)
    assert not any(p.requires_grad for p in chained.conv3.parameters())


class Normed(nn.Module):
    """A layer without bias before a batch norm; with ``around`` somebody else reads it too."""

    def __init__(self, around):
        super().__init__()
        self.conv, self.norm, self.around = nn.Conv2d(3, 12, 3, bias=False), nn.BatchNorm2d(12), around

    def forward(self, x):
        y = self.conv(x)
        z = self.norm(y)
        return (z + y if self.around else z).mean((2, 3))


@pytest.mark.parametrize(("around", "frozen"), [(False, False), (True, False), (False, True)])
def test_a_mean_lost_before_a_batch_norm_goes_into_it(around, frozen):
    torch.manual_seed(0)
    model, fit = Normed(around), images(64, 5) + 3
    model(fit)
    model.eval().norm.requires_grad_(not frozen)
    made = copy.deepcopy(model)
    replace(made, "conv", factor(model.conv, "svd", 2))
    reconstruct(model, made, trace_layers(model, fit), fit)
    with torch.no_grad():
        old, new = model.norm(model.conv(fit)), made.norm(made.conv(fit))
    if around or frozen:
        assert torch.equal(made.norm.running_mean, model.norm.running_mean)
    else:
        assert (old - new).mean((0, 2, 3)).abs().max() < 1e-4
        assert (made.norm.running_mean - model.norm.running_mean).abs().max() > 0.01
        assert (old - new).square().mean() < (old - old.mean((0, 2, 3), keepdim=True)).square().mean()


def test_the_plan_says_what_to_expect(model):
    plan = plan_compression(model, "low-rank", example=images(96, 4), keep_macs=0.13)
    mild = plan_compression(model, "low-rank", example=images(96, 4), keep_macs=0.95)
    assert plan.agreement < mild.agreement <= 1
    assert "below 90 %" in dataclasses.replace(plan, agreement=0.89).text()
    assert "below 90 %" not in mild.text()
    assert "expected agreement" in mild.text()


@pytest.mark.parametrize(("method", "settings"), [("low-rank", {"decomposition": "svd"}), ("prune-filters", {})])
def test_a_plan_counts_on_new_weights_only_where_they_come(model, method, settings):
    """`compress` plans as it carries out, and a plan asked for by itself is the same."""
    arguments = {"example": images(64, 50) + 1, "keep_macs": 0.4, **settings}
    counts_on, as_they_are = (
        plan_compression(model, method, reconstruct=asked, **arguments) for asked in (None, False)
    )
    assert [c.sensitivity for c in counts_on.choices] != [c.sensitivity for c in as_they_are.choices]
    own = compress(model, method, reconstruct=False, **arguments)
    del arguments["keep_macs"]
    planned = compress(model, method, plan=as_they_are, reconstruct=False, **arguments)
    assert all(a.equal(b) for a, b in zip(own.parameters(), planned.parameters(), strict=True))


def test_prediction_and_measure():
    scores = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    assert predicted_agreement(scores, 0.0) == 1
    expected = predicted_agreement(scores, 0.1)
    noisy = scores + scores.std(0) * 0.1**0.5 * torch.randn(200, 8, generator=torch.Generator().manual_seed(1))
    assert float((noisy.argmax(1) == scores.argmax(1)).float().mean()) == pytest.approx(expected, abs=0.08)
    assert agreement(nn.Identity(), nn.Identity(), scores) == 1
    assert agreement(nn.Flatten(), nn.Identity(), torch.randn(4, 2, 2, 2)) is None


def test_very_many_scores_are_judged_by_some_of_them(monkeypatch):
    scores = torch.randn(400, 8, generator=torch.Generator().manual_seed(0))
    monkeypatch.setattr(planning_agreement, "_NUMBERS", 1000)
    assert predicted_agreement(scores, 0.1) == predicted_agreement(scores[::4], 0.1)


def test_what_has_no_weights_to_solve_says_so(model):
    with pytest.raises(InvalidArgument, match="no weights to re-solve"):
        compress(model, "binary", example=images(64, 0), reconstruct=True)
    with pytest.raises(InvalidArgument, match="real images"):
        compress(model, "low-rank", rank=2, reconstruct=True)


@pytest.mark.parametrize("decomposition", ["svd", "interpolative"])
def test_few_samples_are_no_reason_to_fail(decomposition):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 48, 3, padding=1), nn.ReLU(), nn.Conv2d(48, 24, 3, stride=2), nn.Flatten()
    ).eval()
    fit = images(64, 7)[:, :, :4, :4]  # one position an image, 432 inputs
    made = compress(model, "low-rank", example=fit, keep_macs=0.6, decomposition=decomposition)
    with torch.no_grad():
        assert made(fit).shape == model(fit).shape
    assert compression_history(made)[0]["reconstructed"] == 56


class Residual(nn.Module):
    """What the branch adds is scaled by a normalisation; without an activation it can make good what the stem lost."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.narrow = nn.Conv2d(8, 8, 1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 8, 1, bias=False)
        self.head = nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.norm(self.wide(self.narrow(x))))


@pytest.fixture
def residual():
    torch.manual_seed(0)
    made = Residual()
    with torch.no_grad():
        made.norm.weight.uniform_(0.5, 2)
        made.norm.running_var.uniform_(0.5, 2)
    return made.eval()


def test_a_layer_added_to_a_map_makes_good_what_that_map_lost(residual):
    """The stem is wrong and frozen, and so is the head: the branch alone can bring the answers back."""
    wrong = copy.deepcopy(residual)
    with torch.no_grad():
        wrong.stem.weight += 0.3 * torch.randn(8, 3, 1, 1)
        wrong.stem.bias += 0.3
    for part in (wrong.stem, wrong.head):
        part.requires_grad_(False)
    fit, new = images(64, 1), images(16, 2)
    inventory = trace_layers(residual, fit)
    with torch.no_grad():
        wanted, off = residual(new), wrong(new)
    reconstruct(residual, wrong, inventory, fit)
    with torch.no_grad():
        assert float((wrong(new) - wanted).norm()) < 0.02 * float((off - wanted).norm())


def test_the_way_to_a_sum_is_tried_out(residual):
    inventory = trace_layers(residual, images(4, 0))
    found = shortcuts(residual, inventory, [layer.name for layer in inventory.layers], images(2, 1))
    assert {name: shortcut.other for name, shortcut in found.items()} == {"wide": "stem"}
    norm = residual.norm
    scale = (norm.weight / (norm.running_var + norm.eps).sqrt()).detach()
    torch.testing.assert_close(found["wide"].scale, scale, rtol=1e-4, atol=1e-5)
    residual.norm = nn.Sequential(norm, nn.ReLU())
    inventory = trace_layers(residual, images(4, 0))
    assert shortcuts(residual, inventory, [layer.name for layer in inventory.layers], images(2, 1)) == {}
