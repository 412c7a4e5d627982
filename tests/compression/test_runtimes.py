"""Runtimes: the same numbers in each, and a clear word where one cannot take a network."""

import pytest
import torch
from torch import nn

from convsmith.compression.planning.measure import compiled_networks
from convsmith.compression.runtimes import RUNTIMES, check_runtime, differences, onnx_function, runnable, write_onnx
from convsmith.errors import InvalidArgument, RunFailed


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(512, 4))


def test_the_file_computes_what_the_network_computes(network, tmp_path):
    images = torch.randn(5, 3, 8, 8)
    network(images)
    compute = onnx_function(write_onnx(network, images, tmp_path / "n.onnx"), threads=1)
    assert max(differences(network, compute, images).values()) < 1e-5
    assert network.training
    for runtime in ("torch", "onnxruntime"):
        with torch.no_grad():
            got = runnable(network, images[:1], runtime)(images[:1])
        torch.testing.assert_close(got, compute(images[:1].requires_grad_()), atol=1e-5, rtol=1e-5)


def test_what_cannot_be_written_says_why(tmp_path):
    class Decides(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class SaysNothing(nn.Module):
        def forward(self, x):
            raise AssertionError

    for network in (Decides(), SaysNothing()):
        with pytest.raises(RunFailed, match="cannot write this network"):
            write_onnx(network, torch.randn(2, 3, 8, 8), tmp_path / "n.onnx")


def test_what_cannot_be_compiled_says_so_where_the_error_says_nothing(network, monkeypatch):
    def speechless(*_args, **_how):
        def fails(_images):
            raise AssertionError

        return fails

    monkeypatch.setattr(torch, "compile", speechless)
    images = torch.randn(2, 3, 8, 8)
    with pytest.raises(RunFailed, match="cannot take this network"):
        runnable(network, images, "compile")
    assert compiled_networks({"it": network}, images)["it"] == "did not compile: AssertionError: "


def test_unknown_runtimes_offer_the_near_ones():
    assert "onnxruntime" in RUNTIMES
    with pytest.raises(InvalidArgument, match="onnxruntime"):
        check_runtime("onnx-runtime")


@pytest.mark.parametrize(("padding", "left"), [(nn.ZeroPad2d((0, 1, 2, 0)), 0), (nn.ReflectionPad2d((0, 1, 2, 0)), 1)])
def test_convolutions_pad_by_themselves_where_zeros_stand_around(padding, left, tmp_path):
    import onnx

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), padding, nn.Conv2d(4, 4, 3, stride=2, padding=(0, 1)), nn.ReLU()).eval()
    images = torch.randn(3, 3, 9, 8)
    file = write_onnx(model, images, tmp_path / "n.onnx")
    assert [node.op_type for node in onnx.load(file).graph.node].count("Pad") == left
    assert max(differences(model, onnx_function(file, 1), images).values()) < 1e-5
