"""Every layer of ours passes its suite, and the suite fails on layers that break rules."""

import pytest
import torch
from torch import nn

from convsmith import compression
from convsmith.compression.methods.low_bit import lowbit
from convsmith.testing import Nonconforming, check_layer

LAYERS = {
    "interleaved": lambda: compression.InterleavedGroupConv2d(2, 3),
    "interleaved, strided": lambda: compression.InterleavedGroupConv2d(2, 3, 3, 2, out_members=2),
    "interleaved, matmul": lambda: compression.InterleavedGroupConv2d(2, 3, backend="matmul"),
    "interleaved, dense": lambda: compression.InterleavedGroupConv2d(2, 3, backend="dense"),
    "structured": lambda: compression.InterleavedStructuredConv2d((2, 3)),
    "structured, loose": lambda: compression.InterleavedStructuredConv2d((1, 3, 2), channels=6),
    "channel order": lambda: compression.ChannelOrder(compression.shuffle(6, 2)),
    "chain block": lambda: compression.ChainBlock(compression.InterleavedGroupConv2d(2, 3), 6),
    "chain residual": lambda: compression.ChainResidual(
        compression.InterleavedGroupConv2d(2, 3), compression.InterleavedGroupConv2d(2, 3), 6
    ),
    "inverted": lambda: compression.InvertedInterleavedBlock(6, 6, expansion=2),
    "inverted, shuffled": lambda: compression.InvertedInterleavedBlock(6, 6, expansion=3, permute_out=True),
    "separable": lambda: compression.DepthwiseSeparableBlock(6, 8, 2),
    "xception": lambda: compression.xception_block(6, 8),
    "merge and run": lambda: compression.MergeAndRunBlock(3),
    "inception-like": lambda: compression.InceptionLikeBlock(6),
    "binary": lambda: lowbit(nn.Conv2d(6, 4, 3), "binary"),
    "ternary": lambda: lowbit(nn.Conv2d(6, 4, 3), "ternary"),
}
LOW_BIT = {
    "script": "TorchScript cannot compile a weight that is quantised on the way; trace, export or ONNX",
    "fx": "symbolic tracing has no values to quantise; export, or trace around the layer",
}
EXCEPTIONS = {
    "binary": LOW_BIT,
    "ternary": LOW_BIT,
    "merge and run": {"script": "it takes one tensor or a pair, which TorchScript cannot type; trace, export or ONNX"},
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_conforms(name):
    exceptions = EXCEPTIONS.get(name, {})
    assert check_layer(LAYERS[name], 6, name=name, exceptions=exceptions).excepted == exceptions


class Broken(nn.Module):
    """Mixes images, draws numbers, writes into its input and forgets the type."""

    def forward(self, x):
        x.mul_(1.01)
        return (x + x.mean() + torch.rand(1)).float()


def test_a_layer_that_breaks_rules_is_told_all_of_them():
    with pytest.raises(Nonconforming) as caught:
        check_layer(Broken, 6)
    for rule in ("the dtype stays", "samples do not influence each other", "arguments are never changed"):
        assert rule in str(caught.value)
