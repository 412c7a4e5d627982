"""The survey finds every layer that a method must not touch."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from convsmith.compression.cost import cost
from convsmith.compression.planning.survey import replace, survey
from convsmith.errors import InvalidArgument


def test_every_trap_is_named(Odd):
    seen = survey(Odd(), torch.randn(2, 3, 8, 8))
    skipped = seen.refused()
    assert set(skipped) == {"functional", "tied_a", "tied_b", "never"}
    assert "function outside" in skipped["functional"]
    assert "shared with tied_b" in skipped["tied_a"]
    assert "never ran" in skipped["never"]
    assert seen.by_name()["shared"].calls == 2
    assert seen.by_name()["depthwise"].is_depthwise
    assert not seen.by_name()["grouped"].is_depthwise


@pytest.mark.parametrize("use", ["weight.T", "F.linear", "weight.data", "sum"])
def test_reading_a_weight_elsewhere_is_seen(use):
    class Reader(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            y = self.a(x)
            if use == "weight.T":
                return y @ self.a.weight.T
            if use == "F.linear":
                return torch.nn.functional.linear(y, self.a.weight)
            if use == "weight.data":
                return y @ self.a.weight.data
            return y * sum([self.a.weight]).sum()

    assert "a" in survey(Reader(), torch.randn(2, 4)).refused()


def test_looking_at_a_weights_shape_is_harmless():
    class Looker(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x.to(self.a.weight.dtype)).reshape(-1, self.a.weight.shape[0], self.a.weight.size(1) // 4)

    assert survey(Looker(), torch.randn(2, 4)).refused() == {}


def test_subclasses_parametrisations_and_hooks_are_refused():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(Scaled(3, 4, 1), parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1))
    model[2].register_forward_hook(lambda *_: None)
    skipped = survey(model, torch.randn(1, 3, 4, 4)).refused()
    assert "forward of its own" in skipped["0"]
    assert any(name.startswith("1") for name in skipped)
    assert "hooks" in skipped["2"]


def test_layer_macs_add_up_to_the_whole_network(Odd, Plain):
    model = Odd()
    seen = survey(model, torch.randn(4, 3, 8, 8))
    elsewhere = 8 * 8 * 16 * 16  # the functional call
    assert sum(x.macs for x in seen.layers) + elsewhere == cost(model, (3, 8, 8)).macs
    plain = Plain()
    assert sum(x.macs for x in survey(plain, torch.randn(4, 1, 8, 8)).layers) == cost(plain, (1, 8, 8)).macs


def test_modes_and_hooks_are_given_back(Plain):
    model = Plain().train()
    model.bn1.eval()
    survey(model, torch.randn(2, 1, 8, 8))
    assert model.training
    assert not model.bn1.training
    assert model.bn2.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_errors_name_the_example(Plain):
    with pytest.raises(InvalidArgument, match="must run on the example"):
        survey(Plain(), torch.randn(2, 3, 8, 8))

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(2, 2)

        def forward(self, x):
            return self.a(x), x

    with pytest.raises(InvalidArgument, match="one tensor"):
        survey(Two(), torch.randn(1, 2))


def test_replace_reaches_every_place_of_a_shared_module():
    model = nn.Module()
    model.a = nn.Linear(2, 2)
    model.list = nn.ModuleList([model.a, nn.Linear(2, 2)])
    new = nn.Linear(2, 2)
    replace(model, "a", new)
    assert model.a is new
    assert model.list[0] is new
