"""Blocks against layer-by-layer formulas, their corners, their spec and the merge-and-run laws."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convsmith.compression import condition, cost, path_counts
from convsmith.compression.operators.blocks import (
    ChainBlock,
    ChainResidual,
    DepthwiseSeparableBlock,
    InceptionLikeBlock,
    InvertedInterleavedBlock,
    MergeAndRunBlock,
    xception_block,
)
from convsmith.errors import InvalidArgument
from tests.compression.conftest import randomised


def norm(layer, x):
    scale = layer.weight / torch.sqrt(layer.running_var + layer.eps)
    return x * scale[:, None, None] + (layer.bias - layer.running_mean * scale)[:, None, None]


class Reordered:
    """A norm's numbers in another order of its channels."""

    def __init__(self, layer, order):
        self.eps = layer.eps
        for name in ("weight", "bias", "running_mean", "running_var"):
            setattr(self, name, getattr(layer, name)[order])


@pytest.mark.parametrize("expand_activation", [False, True])
@pytest.mark.parametrize("permute_out", [False, True])
@pytest.mark.parametrize(("out", "stride"), [(8, 1), (12, 1), (8, 2)])
def test_inverted_block_step_by_step(expand_activation, permute_out, out, stride):
    block = randomised(
        InvertedInterleavedBlock(8, out, stride, 3, 2, 4, expand_activation=expand_activation, permute_out=permute_out)
    )
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    # the authors' form: their expansion, the shuffle, and then channels (j, path, g) where ours are (j, g, path)
    own = block.hidden_order().argsort()
    y = norm(block.norm1, F.conv2d(x.repeat(1, 4, 1, 1), block.expand.weight, groups=8))[:, own]
    theirs = F.conv2d(x, block.expand.weight[own], groups=2)
    torch.testing.assert_close(y, norm(Reordered(block.norm1, own), theirs), rtol=1e-10, atol=1e-10)
    if expand_activation:
        y = y.clamp(0, 6)
    y = y.view(2, 2, 12, 5, 5).transpose(1, 2).reshape(2, 24, 5, 5)
    after = torch.arange(24).view(4, 2, 3).transpose(1, 2).reshape(-1)
    y = F.conv2d(y, block.depthwise.weight[after], None, stride, 1, groups=24)
    y = norm(Reordered(block.norm2, after), y).clamp(0, 6)
    columns = block.project.weight.view(out, 2, 3).transpose(1, 2).reshape(out, 6, 1, 1)
    y = norm(block.norm3, F.conv2d(y, columns, groups=4))
    if permute_out:
        size = y.shape[-1]
        y = y.view(2, 4, out // 4, size, size).transpose(1, 2).reshape(2, out, size, size)
    if out == 8 and stride == 1:
        y = y + x
    torch.testing.assert_close(block(x), y, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("numbers", "paths"),
    [
        ((24, 6, 24, 2, 2), 36),
        ((24, 6, 32, 2, 4), 18),
        ((16, 6, 24, 4, 4), 6),
        ((64, 6, 96, 2, 2), 96),
        ((32, 1, 16, 2, 2), 8),
    ],
)
def test_paths_of_inverted_blocks_are_uniform(numbers, paths):
    into, expansion, out, up, down = numbers
    block = InvertedInterleavedBlock(into, out, 1, expansion, up, down)
    judged = condition(block)
    assert (judged.fewest, judged.most) == (paths, paths)
    assert judged.loose
    assert expansion * into // (up * down) == paths
    spec = block.spec
    without = type(spec)(tuple(type(f)(f.in_channels, f.out_channels, f.groups) for f in spec.factors))
    counts = path_counts(without)
    assert (counts == 0).any()
    assert (counts[: out // max(up, down), : into // max(up, down)] > 0).all()


def test_an_inverted_block_that_two_groups_do_not_split_keeps_the_shuffle():
    block = randomised(InvertedInterleavedBlock(22, 22, 1, 1, 2, 2))
    x = torch.randn(1, 22, 4, 4, dtype=torch.float64)
    y = norm(block.norm1, F.conv2d(x, block.expand.weight, groups=2))
    y = y.view(1, 2, 11, 4, 4).transpose(1, 2).reshape(1, 22, 4, 4)
    y = norm(block.norm2, F.conv2d(y, block.depthwise.weight, padding=1, groups=22)).clamp(0, 6)
    y = x + norm(block.norm3, F.conv2d(y, block.project.weight, groups=2))
    torch.testing.assert_close(block(x), y, rtol=1e-10, atol=1e-10)
    assert torch.equal(block.hidden_order(), torch.arange(22))


def test_parameters_of_an_inverted_block():
    block = InvertedInterleavedBlock(24, 32, 2, 6, 2, 4)
    counted = cost(block, (24, 8, 8))
    assert counted.params_as("conv") == 6 * 24 * 24 // 2 + 9 * 144 + 144 * 32 // 4
    assert counted.params - counted.params_as("conv") == 2 * (2 * 144 + 32)


def test_one_group_is_the_mobilenet_v2_block():
    from timm.models._efficientnet_blocks import InvertedResidual

    theirs = randomised(InvertedResidual(8, 8, stride=1, exp_ratio=3.0, act_layer=nn.ReLU6))
    ours = InvertedInterleavedBlock(8, 8, 1, 3, 1, 1, expand_activation=True)
    pairs = [
        (ours.expand, theirs.conv_pw),
        (ours.norm1, theirs.bn1),
        (ours.depthwise, theirs.conv_dw),
        (ours.norm2, theirs.bn2),
        (ours.project, theirs.conv_pwl),
        (ours.norm3, theirs.bn3),
    ]
    for mine, other in pairs:
        mine.load_state_dict(other.state_dict())
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(ours.double().eval()(x), theirs(x), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ((9, 8, 1, 6, 2, 2), r"groups_up \(of the input\)[\s\S]*2 to divide 9"),
        ((8, 9, 1, 6, 2, 2), r"groups_down \(of the output\)[\s\S]*2 to divide 9"),
        ((8, 8, 1, 3, 2, 5), r"5 to divide 24[\s\S]*4 or 6"),
    ],
)
def test_inverted_block_names_what_does_not_divide(numbers, words):
    with pytest.raises(InvalidArgument, match=words):
        InvertedInterleavedBlock(*numbers)


def test_xception_block_is_the_extreme_interleaved_one():
    block = randomised(xception_block(6, 10, 2))
    x = torch.randn(2, 6, 7, 7, dtype=torch.float64)
    depthwise, pointwise = block.chain.weights
    expected = F.conv2d(F.conv2d(x, depthwise, None, 2, 1, groups=6), pointwise)
    torch.testing.assert_close(block(x), norm(block.norm, expected).clamp(min=0), rtol=1e-10, atol=1e-10)
    separable = DepthwiseSeparableBlock(6, 10, 2)
    assert sum(w.numel() for w in block.chain.weights) == cost(separable, (6, 7, 7)).params_as("conv")


def test_depthwise_separable_step_by_step():
    block = randomised(DepthwiseSeparableBlock(4, 6))
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    y = norm(block.norm1, F.conv2d(x, block.depthwise.weight, padding=1, groups=4)).clamp(min=0)
    y = norm(block.norm2, F.conv2d(y, block.pointwise.weight)).clamp(min=0)
    torch.testing.assert_close(block(x), y, rtol=1e-10, atol=1e-10)


def test_chain_blocks():
    x = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    first, second = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.Conv2d(4, 4, 3, padding=1, bias=False)
    plain = randomised(ChainBlock(first, 4))
    torch.testing.assert_close(plain(x), norm(plain.norm, first(x)).clamp(min=0), rtol=1e-10, atol=1e-10)
    block = randomised(ChainResidual(first, second, 4))
    y = norm(block.norm1, first(x)).clamp(min=0)
    expected = (norm(block.norm2, second(y)) + x).clamp(min=0)
    torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-10)


def split(convolution):
    return convolution.weight.chunk(2)


@pytest.mark.parametrize("merge", ["average", "sum"])
@pytest.mark.parametrize(("out", "stride"), [(4, 1), (6, 2)])
def test_merge_and_run_step_by_step(merge, out, stride):
    block = randomised(MergeAndRunBlock(4, out, stride, merge=merge))
    streams = [torch.randn(2, 4, 6, 6, dtype=torch.float64) for _ in range(2)]
    conv1, norm1, _, conv2, norm2 = block.branches

    def part(layer, index):
        half = layer.num_features // 2
        piece = slice(index * half, (index + 1) * half)
        scale = layer.weight[piece] / torch.sqrt(layer.running_var[piece] + layer.eps)
        shift = layer.bias[piece] - layer.running_mean[piece] * scale
        return lambda x: x * scale[:, None, None] + shift[:, None, None]

    branches, shortcuts = [], []
    for index, x in enumerate(streams):
        y = part(norm1, index)(F.conv2d(x, split(conv1)[index], None, stride, 1)).clamp(min=0)
        branches.append(part(norm2, index)(F.conv2d(y, split(conv2)[index], None, 1, 1)))
        if out != 4:
            conv, bn = block.shortcut
            x = part(bn, index)(F.conv2d(x, split(conv)[index], None, stride))
        shortcuts.append(x)
    mean = (shortcuts[0] + shortcuts[1]) / 2
    stacked = block(torch.cat(streams, 1))
    if merge == "sum":
        torch.testing.assert_close(stacked, (mean + branches[0] + branches[1]).clamp(min=0), rtol=1e-10, atol=1e-10)
        return
    expected = [(branch + mean).clamp(min=0) for branch in branches]
    torch.testing.assert_close(stacked, torch.cat(expected, 1), rtol=1e-10, atol=1e-10)
    for ours, theirs in zip(block(tuple(streams)), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_merge_and_run_is_idempotent_without_branches():
    blocks = [randomised(MergeAndRunBlock(3, act_layer=nn.Identity)) for _ in range(4)]
    for block in blocks:
        nn.init.zeros_(block.branches[-1].weight)
        nn.init.zeros_(block.branches[-1].bias)
        block.branches[-1].running_mean.zero_()
        nn.init.zeros_(block.branches[-2].weight)
    first, second = torch.randn(2, 2, 3, 4, 4, dtype=torch.float64)
    mean = (first + second) / 2
    streams = (first, second)
    for block in blocks:
        streams = block(streams)
        torch.testing.assert_close(streams[0], mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(streams[1], mean, rtol=1e-12, atol=1e-12)
    merge = torch.kron(torch.full((2, 2), 0.5), torch.eye(3))
    torch.testing.assert_close(merge @ merge, merge, rtol=0, atol=0)


def test_inception_like_block():
    block = randomised(InceptionLikeBlock(4, 6, 2))
    x = torch.randn(2, 4, 6, 6, dtype=torch.float64)
    expected = (block.shortcut(x) + block.branch1(x) + block.branch2(x)).clamp(min=0)
    torch.testing.assert_close(block(x), expected, rtol=0, atol=0)
    assert isinstance(InceptionLikeBlock(4).shortcut, nn.Identity)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: MergeAndRunBlock(4, merge="mean"), "merge has no such choice"),
        (lambda: MergeAndRunBlock(4, shortcut="pad"), "shortcut has no such choice"),
        (lambda: MergeAndRunBlock(4)(torch.randn(1, 4, 3, 3)), r"\[B, 8, H, W\]"),
    ],
)
def test_bad_merge_and_run(call, words):
    with pytest.raises(InvalidArgument, match=words):
        call()


@pytest.mark.parametrize(
    "block",
    [
        InvertedInterleavedBlock(4, 4, 1, 2),
        MergeAndRunBlock(2),
        InceptionLikeBlock(4),
        DepthwiseSeparableBlock(4, 4),
        xception_block(4, 4),
    ],
)
def test_gradients_of_every_block(block):
    block = block.double().train()
    x = torch.randn(3, 4, 3, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,), atol=1e-4)
