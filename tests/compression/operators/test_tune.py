"""Tuning takes what a clock says, writes it into a copy and leaves its argument alone."""

import copy
import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from convsmith.compression import InterleavedGroupConv2d, tune
from convsmith.compression.planning import latency
from convsmith.errors import InvalidArgument


def network():
    return nn.Sequential(InterleavedGroupConv2d(4, 2), nn.BatchNorm2d(8), InterleavedGroupConv2d(2, 4, 1)).train()


def test_the_fastest_by_the_clock_is_written_into_a_copy(monkeypatch):
    module = sys.modules["convsmith.compression.operators.tune"]
    clock = [0.0]
    cost = {"group": 3.0, "matmul": 1.0, "dense": 2.0}

    def timed(name, run):
        def backend(x, chain):
            clock[0] += cost[name]
            return run(x, chain)

        return backend

    monkeypatch.setattr(module, "BACKENDS", {name: timed(name, run) for name, run in module.BACKENDS.items()})
    monkeypatch.setattr(latency, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    model = network()
    before = copy.deepcopy(model.state_dict())
    tuned = tune(model, torch.randn(2, 8, 5, 5), rounds=3)
    assert [tuned[0].backend, tuned[2].backend] == ["matmul", "matmul"]
    assert [model[0].backend, model[2].backend] == ["auto", "auto"]
    assert model.training
    assert tuned.training
    assert not tuned[0]._forward_pre_hooks
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_the_tuned_copy_computes_the_same():
    model = network().eval().double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(tune(model, x, rounds=1)(x), model(x), rtol=1e-12, atol=1e-12)


def test_nothing_to_tune_is_an_error():
    with pytest.raises(InvalidArgument, match="no interleaved chain ran"):
        tune(nn.Conv2d(3, 4, 1), torch.randn(1, 3, 4, 4))
    with pytest.raises(InvalidArgument, match="rounds must be a whole number at least 1"):
        tune(network(), torch.randn(1, 8, 4, 4), rounds=0)
