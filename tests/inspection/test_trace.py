"""The trace finds every layer that a method must not touch."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations
from torch.testing import assert_close

from convsmith.compression.convert import look
from convsmith.compression.cost import cost
from convsmith.errors import InvalidArgument
from convsmith.inspection.outputs import joined_output
from convsmith.inspection.trace import trace_layers


def test_every_trap_is_named(Odd):
    seen = trace_layers(Odd(), torch.randn(2, 3, 8, 8))
    skipped = seen.skipped()
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

    assert "a" in trace_layers(Reader(), torch.randn(2, 4)).skipped()


def test_looking_at_a_weights_shape_is_harmless():
    class Looker(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x.to(self.a.weight.dtype)).reshape(-1, self.a.weight.shape[0], self.a.weight.size(1) // 4)

    assert trace_layers(Looker(), torch.randn(2, 4)).skipped() == {}


def test_subclasses_parametrisations_and_hooks_are_refused():
    class Scaled(nn.Conv2d):
        def forward(self, x):
            return super().forward(x) * 2

    model = nn.Sequential(Scaled(3, 4, 1), parametrizations.weight_norm(nn.Conv2d(4, 4, 1)), nn.Conv2d(4, 4, 1))
    model[2].register_forward_hook(lambda *_: None)
    skipped = trace_layers(model, torch.randn(1, 3, 4, 4)).skipped()
    assert "forward of its own" in skipped["0"]
    assert any(name.startswith("1") for name in skipped)
    assert "hooks" in skipped["2"]


def test_layer_macs_add_up_to_the_whole_network(Odd, Plain):
    model = Odd()
    seen = trace_layers(model, torch.randn(4, 3, 8, 8))
    elsewhere = 8 * 8 * 16 * 16  # the functional call
    assert sum(x.macs for x in seen.layers) + elsewhere == cost(model, (3, 8, 8)).macs
    plain = Plain()
    assert sum(x.macs for x in trace_layers(plain, torch.randn(4, 1, 8, 8)).layers) == cost(plain, (1, 8, 8)).macs


def test_modes_and_hooks_are_given_back(Plain):
    model = Plain().train()
    model.bn1.eval()
    trace_layers(model, torch.randn(2, 1, 8, 8))
    assert model.training
    assert not model.bn1.training
    assert model.bn2.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_errors_name_the_example(Plain):
    with pytest.raises(InvalidArgument, match="must run on the example"):
        look(Plain(), torch.randn(2, 3, 8, 8))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(2, 2)

    def forward(self, x):
        return {"scores": (self.a(x), x), "anchors": torch.arange(3)}


def test_a_network_may_return_any_structure():
    model, x = Two(), torch.randn(5, 2)
    found = trace_layers(model, x)
    assert [layer.name for layer in found.usable("linear")] == ["a"]
    assert_close(joined_output(found.output), torch.cat([model.a(x), x], dim=1))


def test_the_whole_network_is_no_layer_of_itself():
    assert "whole network" in trace_layers(nn.Linear(2, 2), torch.randn(1, 2)).skipped()[""]


def test_one_trace_tells_calls_and_layers():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.act = nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()

        def forward(self, x):
            return self.act(self.conv(x)) + x

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.fc = Block(), nn.Linear(2, 3)

        def forward(self, x):
            return self.fc(torch.relu(self.block(self.block(x))).mean((2, 3)))

    found = trace_layers(Net(), torch.randn(2, 2, 4, 4))
    assert [(call.name, call.index) for call in found.calls] == [
        ("block.conv", 0),
        ("block.act", 0),
        ("block", 0),
        ("block.conv", 1),
        ("block.act", 1),
        ("block", 1),
        ("fc", 0),
        ("", 0),
    ]
    conv, act, block = found.calls[:3]
    assert (set(conv.followers), act.source, block.adds, conv.adds) == ({"ReLU"}, conv, True, False)
    assert conv.parents[-1] is block
    assert found.calls[5].followers == ["ReLU"]
    assert found.functional == ("Net",)
    assert {layer.name: layer.calls for layer in found.layers} == {"block.conv": 2, "fc": 1}
    assert (found.rows, found.count(conv.module)) == (2, 2)
    assert not any(m._forward_hooks or m._forward_pre_hooks for call in found.calls for m in [call.module])


def test_an_example_without_an_image_is_refused():
    with pytest.raises(InvalidArgument, match="no image"):
        trace_layers(nn.Sequential(nn.Conv2d(3, 4, 3)), torch.zeros(0, 3, 8, 8))
