"""Folded networks equal their originals in float64, hold no norm and no gather, and export."""

import copy

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import prune

import convsmith  # noqa: F401  (registers our models)
from convsmith.compression import (
    InterleavedGroupConv2d,
    InvertedInterleavedBlock,
    LinearChain,
    MergeAndRunBlock,
    fold_for_inference,
)
from convsmith.compression.folded import FoldedInvertedBlock
from convsmith.errors import InvalidArgument


def used(model):
    """Give every norm statistics and an affine of its own, as after training."""
    generator = torch.Generator().manual_seed(0)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            shape = layer.running_mean.shape
            layer.weight.data = 0.5 + torch.rand(shape, generator=generator)
            layer.bias.data = 0.1 * torch.randn(shape, generator=generator)
            layer.running_mean = 0.1 * torch.randn(shape, generator=generator)
            layer.running_var = 0.5 + torch.rand(shape, generator=generator)
    return model.eval()


OURS = [
    "igcv1_small",
    "igcv2_small",
    "igcv3_cifar_small",
    "dmrnet_small",
    "cs_mobilenetv1_small",
    "xception_igc_small",
    "cs_resnet20",
]


@pytest.mark.parametrize("name", [*OURS, "mobilenetv2_050", "mobilenetv3_small_050", "resnet10t"])
def test_whole_networks(name):
    model = used(timm.create_model(name, num_classes=5)).double()
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, model.default_cfg["input_size"][0], 16, 16, dtype=torch.float64)
    folded = fold_for_inference(model)
    expected = model(x)
    torch.testing.assert_close(folded(x), expected, rtol=1e-10, atol=1e-10 * float(expected.detach().abs().max()))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


@pytest.mark.parametrize("name", OURS)
def test_float32_and_either_layout(name):
    model = used(timm.create_model(name, num_classes=5))
    folded = fold_for_inference(model)
    x = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected = model(x)
        scale = float(expected.detach().abs().max())
        for layout in (torch.contiguous_format, torch.channels_last):
            y = folded(x.contiguous(memory_format=layout))
            torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4 * scale)


@pytest.mark.parametrize("groups", [(1, 1), (2, 2), (2, 4), (4, 2), (1, 2), (2, 1)])
@pytest.mark.parametrize("flags", [{}, {"expand_activation": True}, {"permute_out": True}])
def test_every_inverted_block(groups, flags):
    block = used(InvertedInterleavedBlock(8, 8, 1, 4, *groups, **flags)).double()
    folded = fold_for_inference(nn.Sequential(block))
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(folded(x), block(x), rtol=1e-10, atol=1e-10)
    (inner,) = [m for m in folded.modules() if isinstance(m, FoldedInvertedBlock)]
    assert inner.expand.in_channels == 8  # groups of 2 or 4 channels are written out
    assert inner.project.groups == 1


def test_a_width_that_two_groups_do_not_split():
    block = used(InvertedInterleavedBlock(22, 22, 1, 1, 2, 2)).double()
    x = torch.randn(1, 22, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(fold_for_inference(nn.Sequential(block))(x), block(x), rtol=1e-10, atol=1e-10)


def test_an_activation_that_cannot_be_folded_stays():
    block = used(InvertedInterleavedBlock(8, 8, 1, 2, act_layer=nn.SiLU)).double()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(fold_for_inference(nn.Sequential(block))(x), block(x), rtol=1e-12, atol=1e-12)


def hooked(module):
    module.register_forward_hook(lambda _module, _args, out: 2 * out)
    return module


@pytest.mark.parametrize("place", ["convolution", "norm"])
@pytest.mark.parametrize(
    "dress",
    [
        hooked,
        lambda layer: prune.random_unstructured(layer, "weight", 0.5),
        lambda layer: nn.utils.parametrize.register_parametrization(layer, "weight", nn.Softplus()) and layer,
    ],
)
def test_what_a_hook_or_a_parametrisation_changes_is_not_folded(place, dress):
    model = used(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())).double()
    dress(model[place == "norm"])
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(fold_for_inference(model)(x), model(x))


def test_an_activation_in_the_norm_of_a_merge_and_run_block_stays():
    block = used(MergeAndRunBlock(4, norm_layer=timm.layers.BatchNormAct2d)).double()
    x = torch.randn(2, 8, 6, 6, dtype=torch.float64)
    torch.testing.assert_close(fold_for_inference(nn.Sequential(block))(x), block(x))


def test_a_chain_shared_by_two_norms_is_folded_twice():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.chain = InterleavedGroupConv2d(3, 2)
            self.norm1, self.norm2 = nn.BatchNorm2d(6), nn.BatchNorm2d(6)

        def forward(self, x):
            return self.norm2(self.chain(self.norm1(self.chain(x))))

    model = used(Net()).double()
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    folded = fold_for_inference(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    assert not any(isinstance(m, LinearChain) for m in folded.modules())
    assert sum(isinstance(m, nn.Conv2d) for m in folded.modules()) == 4


def test_a_norm_with_two_readers_or_none_is_left_where_it_must():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.norm, self.act = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()

        def forward(self, x):
            y = self.conv(x)
            return self.act(self.norm(y)) + y

    model = used(Net()).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    folded = fold_for_inference(model)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-12, atol=1e-12)
    assert any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())


def test_the_border_is_kept_where_the_expansion_has_a_shift():
    block = used(InvertedInterleavedBlock(4, 4, 1, 2)).double()
    block.norm1.bias.data.fill_(3.0)
    x = torch.zeros(1, 4, 3, 3, dtype=torch.float64)
    torch.testing.assert_close(fold_for_inference(nn.Sequential(block))(x), block(x), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["igcv3_cifar_small", "igcv1_small"])
def test_the_exported_graph_holds_no_gather_and_no_norm(name):
    model = used(timm.create_model(name))
    program = torch.export.export(fold_for_inference(model), (torch.randn(2, 3, 8, 8),))
    kinds = {str(node.target) for node in program.graph.nodes}
    assert not any(word in kind for kind in kinds for word in ("index", "gather", "batch_norm"))
    assert not any(word in kind for kind in kinds for word in ("permute", "transpose"))


@pytest.mark.slow
def test_onnx_holds_no_gather_and_agrees(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    model = used(timm.create_model("igcv3_cifar_small"))
    x = torch.randn(1, 3, 8, 8)
    path = tmp_path / "net.onnx"
    torch.onnx.export(fold_for_inference(model), (x,), path, dynamo=True, verbose=False)
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert not kinds & {"Gather", "GatherND", "GatherElements", "BatchNormalization", "Transpose"}
    session = onnxruntime.InferenceSession(path)
    (y,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(y), model(x).detach(), rtol=1e-3, atol=1e-4)


def test_gradients_still_flow_to_the_images():
    model = used(timm.create_model("igcv3_cifar_small"))
    x = torch.randn(1, 3, 8, 8, requires_grad=True)
    (ours,) = torch.autograd.grad(fold_for_inference(model)(x).sum(), x)
    (theirs,) = torch.autograd.grad(model(x).sum(), x)
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


def test_what_cannot_be_traced_says_so():
    class Branches(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    class Asserts(nn.Module):
        def forward(self, x):
            assert isinstance(x, torch.Tensor)
            return x

    for network in (Branches(), Asserts()):
        with pytest.raises(InvalidArgument, match=rf"torch.fx can trace[\s\S]*{type(network).__name__}"):
            fold_for_inference(network)


@pytest.mark.parametrize("wrap", [nn.DataParallel, lambda m: torch.compile(m, backend="eager")], ids=["dp", "compiled"])
def test_wrappers_are_taken_off(wrap):
    model = used(timm.create_model("cs_resnet20", num_classes=5)).double().eval()
    x = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(fold_for_inference(wrap(model))(x), model(x))


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "resnetv2_50x1_bit"])
def test_convolutions_that_pad_by_the_size_of_the_image_are_folded_and_standardised_ones_stay(name):
    model = used(timm.create_model(name, num_classes=5)).double().eval()
    folded = fold_for_inference(model)
    x = torch.randn(1, 3, 33, 40, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(folded(x), model(x))
    assert not any(isinstance(layer, nn.BatchNorm2d) for layer in folded.modules())
