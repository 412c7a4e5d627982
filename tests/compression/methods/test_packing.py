"""Bits, trits and sparse tensors come back exactly."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convsmith.compression.methods.low_bit import lowbit
from convsmith.compression.methods.packing import (
    load_packed_state,
    pack_bits,
    pack_trits,
    packed_state,
    unpack_bits,
    unpack_trits,
)
from convsmith.errors import InvalidArgument


@given(st.lists(st.booleans(), min_size=1, max_size=50))
def test_bits_by_definition(flags):
    packed = pack_bits(torch.tensor(flags))
    assert packed.numel() == -(-len(flags) // 8)
    assert [bool(packed[i // 8] >> (i % 8) & 1) for i in range(len(flags))] == flags
    assert unpack_bits(packed, len(flags)).tolist() == flags


@given(st.lists(st.sampled_from([-1, 0, 1]), min_size=1, max_size=33))
def test_trits_by_definition(values):
    packed = pack_trits(torch.tensor(values))
    assert packed.numel() == -(-len(values) // 5)
    assert [int(packed[i // 5]) // 3 ** (i % 5) % 3 - 1 for i in range(len(values))] == values
    assert unpack_trits(packed, len(values)).tolist() == values


LAYERS = [
    nn.Conv2d(5, 7, 3, padding=1),
    nn.Linear(9, 4, bias=False),
    nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
@pytest.mark.parametrize(("scheme", "bits"), [("binary", 1), ("ternary", 1.6), ("int8", 8)])
def test_low_bit_layers_survive_exactly_and_small(layer, scheme, bits):
    made = lowbit(layer, scheme)
    state = packed_state(made)
    codes = state["weight|codes"]
    assert codes.numel() <= made.weight.numel() * bits / 8 + 1
    again = load_packed_state(lowbit(layer, scheme, keep=False), state)
    assert torch.equal(again.quantised(), made.quantised())
    twice = packed_state(again)
    assert all(torch.equal(twice[key], value) for key, value in state.items())


def test_an_all_zero_channel_stays_zero():
    layer = nn.Linear(4, 3)
    nn.init.zeros_(layer.weight[1:2])
    for scheme in ("binary", "ternary", "int8"):
        made = lowbit(layer, scheme)
        assert torch.count_nonzero(made.quantised()[1]) == 0
        again = load_packed_state(lowbit(layer, scheme, keep=False), packed_state(made))
        assert torch.equal(again.quantised().abs(), made.quantised().abs())


def test_sparse_tensors_are_stored_by_their_values():
    layer = nn.Conv2d(32, 32, 3)
    with torch.no_grad():
        layer.weight.mul_(torch.rand_like(layer.weight) < 0.25)
    state = packed_state(layer)
    assert set(state) == {"weight|mask", "weight|values", "bias"}
    stored = sum(v.numel() * v.element_size() for v in state.values())
    assert stored < 0.32 * sum(v.numel() * 4 for v in layer.state_dict().values())
    again = load_packed_state(nn.Conv2d(32, 32, 3), state)
    assert torch.equal(again.weight, layer.weight)


def test_shared_tensors_are_stored_once():
    model = nn.Module()
    model.a, model.b = nn.Linear(3, 3), nn.Linear(3, 3)
    model.b.weight = model.a.weight
    state = packed_state(model)
    assert "b.weight" not in state
    fresh = nn.Module()
    fresh.a, fresh.b = nn.Linear(3, 3), nn.Linear(3, 3)
    fresh.b.weight = fresh.a.weight
    load_packed_state(fresh, state)
    assert torch.equal(fresh.b.weight, model.b.weight)


def test_loading_is_strict():
    layer = nn.Linear(3, 3)
    state = packed_state(layer)
    for broken in (
        {"weight": state["weight"]},
        {**state, "extra": state["bias"]},
        {**state, "weight": torch.zeros(2, 2)},
    ):
        with pytest.raises(InvalidArgument, match="do not fit"):
            load_packed_state(nn.Linear(3, 3), broken)
