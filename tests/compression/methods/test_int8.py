"""Int8: close to the original, storable as JSON, trainable, and safe to load."""

import copy
from operator import attrgetter

import pytest
import timm
import torch
from torch import nn

from convsmith.compression import (
    Int8Model,
    compress,
    compression_history,
    finish,
    load_packed_state,
    packed_state,
    plan_compression,
    restore_structure,
)
from convsmith.compression.methods.graphs import graph_from_json
from convsmith.compression.planning.plan import WHOLE
from convsmith.errors import InvalidArgument

IMAGES = torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def network(Plain, settled):
    torch.manual_seed(0)
    return settled(Plain(), IMAGES)


@pytest.fixture(scope="module")
def quantised(network):
    return compress(network, "int8", example=IMAGES)


def test_what_is_frozen_stays_frozen_in_the_graph(network, quantised):
    frozen = compress(copy.deepcopy(network).requires_grad_(False), "int8", example=IMAGES)
    for made in (frozen, restore_structure(network, compression_history(frozen))):
        assert list(made.parameters())
        assert not any(p.requires_grad for p in made.parameters())
    assert quantised.program.fc.bias.requires_grad
    part = copy.deepcopy(network)
    part.fc.requires_grad_(False)
    assert not compress(part, "int8", example=IMAGES).program.fc.bias.requires_grad


def test_close_to_the_original_at_every_batch_size(network, quantised):
    assert isinstance(quantised, Int8Model)
    for count in (1, 5, 32):
        x = IMAGES[:count]
        with torch.no_grad():
            assert (quantised(x) - network(x)).norm() < 0.05 * network(x).norm() + 0.05
    codes = [b for b in quantised.buffers() if b.dtype == torch.int8]
    assert sum(c.numel() for c in codes) == sum(
        m.weight.numel() for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)
    )
    float_weights = [p for p in quantised.parameters() if p.dim() > 1]
    assert not float_weights


def test_weights_are_the_rounded_ones(network, quantised):
    """Conv3 has no normalisation to fold in, and 512 samples for its 144 inputs: its codes are the nearest ones.

    Weights of layers with samples enough: `test_rounding` has the bound.
    """
    weight = network.conv3.weight.detach()
    reads = [n.args[1].args[:2] for n in quantised.program.graph.nodes if n.target is torch.ops.aten.conv2d.default]
    found = [[attrgetter(str(node.target))(quantised.program) for node in pair] for pair in reads]
    codes, steps = next(pair for pair in found[2:] if pair[0].shape == weight.shape)
    assert float((weight / steps.view(-1, 1, 1, 1) - codes).abs().max()) <= 0.5 + 1e-4  # a tie in float32


@pytest.mark.slow
def test_a_trained_one_becomes_int8(network):
    training = compress(network.train(), "int8", example=IMAGES, mode="qat").train()
    network.eval()
    labels = torch.arange(32) % 5
    optimiser = torch.optim.SGD(training.parameters(), 0.05)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(training(IMAGES), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss))
    assert losses[-1] < losses[0]
    with pytest.raises(InvalidArgument, match="finish"):
        restore_structure(network, compression_history(training))
    training.eval()
    with torch.no_grad():
        assert torch.equal(training(IMAGES), training(IMAGES)), "evaluation must not move the ranges"
        done = finish(training)
        assert (done(IMAGES) - training(IMAGES)).norm() < 0.1 * training(IMAGES).norm()
    again = load_packed_state(restore_structure(network, compression_history(done)), packed_state(done))
    assert torch.equal(again(IMAGES), done(IMAGES))


def test_qat_starts_near_the_original(network):
    training = compress(network.eval(), "int8", example=IMAGES, mode="qat")
    with torch.no_grad():
        assert (training.eval()(IMAGES) - network(IMAGES)).norm() < 0.1 * network(IMAGES).norm()


def test_train_mode_does_not_change_an_int8_graph(quantised):
    assert not any(module.training for module in quantised.modules())  # its parts were said to train
    with torch.no_grad():
        before = quantised.eval()(IMAGES)
        assert torch.equal(quantised.train()(IMAGES), before)
    quantised.eval()


def test_a_plan_of_another_mode_is_refused_and_so_is_half_a_network(network):
    whole = plan_compression(network, "int8", example=IMAGES)
    layers = plan_compression(network, "int8", example=IMAGES, mode="weight-only")
    for mode, plan in (("weight-only", whole), ("static", layers), ("static", whole.with_choice(WHOLE, {}))):
        with pytest.raises(InvalidArgument, match="another mode, or edited"):
            compress(network, "int8", example=IMAGES, plan=plan, mode=mode)
    made = compress(network, "int8", example=IMAGES, plan=layers.with_choice("conv2", {}), mode="weight-only")
    assert type(made.conv2) is nn.Conv2d


class Shared(nn.Module):
    """One ReLU for all places, as in torchvision's residual blocks; ``+`` in the trunk, torch.add in the head."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(8, 5)

    def forward(self, x):
        x = self.relu(self.a(x))
        x = self.relu(self.b(x) + x)
        mean, square = x.mean((2, 3)), x.square().mean((2, 3))
        return self.fc(torch.add(mean * square, square))


@pytest.mark.parametrize("mode", ["static", "qat"])
def test_layers_that_run_twice_and_sums_of_two_kinds(mode):
    torch.manual_seed(1)
    network = Shared().eval()
    made = finish(compress(network, "int8", example=IMAGES, mode=mode).eval())
    with torch.no_grad():
        assert (made(IMAGES[:5]) - network(IMAGES[:5])).norm() < 0.05 * network(IMAGES[:5]).norm()
    again = load_packed_state(restore_structure(network, compression_history(made)), packed_state(made))
    assert torch.equal(again(IMAGES), made(IMAGES))


@pytest.mark.parametrize("mode", ["static", pytest.param("qat", marks=pytest.mark.slow)])
def test_a_second_order_head_stays_in_floating_point(mode, settled):
    from convsmith.pooling import attach

    torch.manual_seed(1)
    trunk = settled(timm.create_model("cs_resnet20", num_classes=5, in_chans=1), IMAGES)
    second = attach(trunk, "isqrt-cov", dim=16).eval()
    made = finish(compress(second, "int8", example=IMAGES, mode=mode).eval())
    with torch.no_grad():
        assert (made(IMAGES[:3]) - second(IMAGES[:3])).norm() < 0.1 * second(IMAGES[:3]).norm()
    rounded = {
        node.args[0].target for node in made.program.graph.nodes if "quantize_per_tensor" in str(node.target)
    } - {node.target for node in made.program.graph.nodes if "quantize" in str(node.target)}
    assert rounded
    for target in rounded:
        assert not any(word in str(target) for word in ("mul", "sum", "where", "bmm", "sub", "mean")), target
    again = load_packed_state(restore_structure(second, compression_history(made)), packed_state(made))
    assert torch.equal(again(IMAGES), made(IMAGES))


def test_a_head_that_cannot_be_exported_says_so(settled):
    from convsmith.errors import RunFailed
    from convsmith.pooling import attach

    trunk = settled(timm.create_model("cs_resnet20", num_classes=5, in_chans=1), IMAGES)
    second = attach(trunk, "mpn-cov", dim=16).eval()
    with pytest.raises(RunFailed, match="weight-only"):
        compress(second, "int8", example=IMAGES)
    made = compress(second, "int8", example=IMAGES, mode="weight-only")
    with torch.no_grad():
        assert (made(IMAGES) - second(IMAGES)).norm() < 0.1 * second(IMAGES).norm()


@pytest.mark.parametrize("target", ["os.system", "aten.no_such.default", "operator.attrgetter", "builtins.eval.x"])
def test_a_recipe_cannot_name_other_code(quantised, target):
    (value,) = compression_history(quantised)[0]["layers"].values()
    next(n for n in value["nodes"] if n["op"] == "call_function")["target"] = target
    with pytest.raises(InvalidArgument, match="not allowed"):
        graph_from_json(value)


def test_a_fixed_batch_size_is_refused_with_the_way_out():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a = nn.Linear(64, 3)

        def forward(self, x):
            return self.a(x.reshape(2, -1)) if len(x) == 2 else self.a(x.flatten(1))

    from convsmith.errors import RunFailed

    with pytest.raises(RunFailed, match="weight-only"):
        compress(Fixed(), "int8", example=IMAGES)


class Awkward(nn.Module):
    """Padding by name, a depthwise layer, a residual sum, a grouped transposed convolution with a normalisation."""

    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding="same", bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 4, padding="same", groups=8)
        self.point = nn.Conv2d(8, 8, 1)
        self.up = nn.ConvTranspose2d(8, 8, 2, 2, groups=4, bias=False)
        self.up_norm = nn.BatchNorm2d(8)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = torch.relu(self.norm(self.first(x)))
        x = x + self.point(torch.nn.functional.relu6(self.depthwise(x)))
        return self.head(torch.relu(self.up_norm(self.up(x))).mean((2, 3)))


@pytest.mark.filterwarnings("ignore")
def test_what_torchao_cannot_take_is_written_so_that_it_can():
    torch.manual_seed(0)
    model = Awkward()
    images = torch.randn(32, 3, 12, 12)
    for _ in range(3):
        model(images)
    model.eval()
    made = compress(model, "int8", example=images)
    with torch.no_grad():
        wanted, got = model(images), made(images)
    assert float((got - wanted).norm() / wanted.norm()) < 0.05
    holders = {n: b for n, b in made.named_buffers() if b.dtype == torch.int8}
    assert {tuple(b.shape) for b in holders.values()} >= {(8, 3, 3, 3), (8, 1, 4, 4), (8, 8, 1, 1), (5, 8)}


def test_onnx_runtime_multiplies_integers_throughout(network, quantised, tmp_path):
    """A residual sum fused into the convolution before it would leave that one in floating point there."""
    import onnx
    import onnxruntime

    from convsmith.compression.runtimes import differences, onnx_function, tolerance, write_onnx

    file = write_onnx(quantised, IMAGES[:3], tmp_path / "n.onnx")
    assert max(differences(quantised, onnx_function(file, 1), IMAGES[:3]).values()) < tolerance(quantised)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    kinds = [node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node]
    assert kinds.count("QLinearConv") == sum(isinstance(m, nn.Conv2d) for m in network.modules())
    assert "Conv" not in kinds
    assert "Add" not in kinds


def test_regions_with_autocast_off_or_without_gradients_are_part_of_the_graph():
    class Regions(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

        def forward(self, x):
            x = self.first(x).relu()
            with torch.autocast("cpu", enabled=False):
                y = self.second(x.float()).relu()
                z = 2 * y
            with torch.no_grad():
                weight = z.mean((2, 3), keepdim=True)
            return (y * weight).mean((2, 3))

    torch.manual_seed(0)
    model, x = Regions().eval(), torch.randn(32, 3, 16, 16)
    small = compress(model, "int8", example=x)
    again = restore_structure(Regions().eval(), compression_history(small))
    again.load_state_dict(small.state_dict())
    with torch.no_grad():
        assert torch.equal(again(x), small(x))
        assert (small(x) - model(x)).abs().max() < 0.03 * model(x).abs().max()
