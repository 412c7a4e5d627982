"""Counts of published networks, against formulas and against torch's own counter."""

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from convsmith.compression import CONVENTIONS, cost
from convsmith.errors import InvalidArgument


@pytest.mark.parametrize(
    ("name", "params", "macs"),
    [
        ("mobilenetv1_100", 4_231_976, 568_740_352),
        ("mobilenetv2_100", 3_504_872, 300_774_272),
        ("resnet18", 11_689_512, 1_814_073_344),
    ],
)
def test_published_networks(name, params, macs):
    with torch.device("meta"):
        model = timm.create_model(name)
    counted = cost(model, (3, 224, 224))
    assert (counted.params, counted.macs) == (params, macs)


def test_conventions_of_resnet18():
    with torch.device("meta"):
        counted = cost(timm.create_model("resnet18"), (3, 224, 224))
    assert counted.params_as("conv") == 11_166_912
    assert counted.params_as("full") == counted.params == 11_689_512
    assert counted.params_as("no-norm") == 11_689_512 - 9_600
    assert counted.params_as("weights") == 11_166_912 + 512_000
    assert counted.params_as("no-classifier") == 11_166_912 + 9_600
    assert set(CONVENTIONS) == {"full", "no-norm", "weights", "no-classifier", "conv"}
    with pytest.raises(InvalidArgument, match="did you mean 'no-norm'"):
        counted.params_as("nonorm")


class Functional(nn.Module):
    """Two groups as one batched matrix product: nothing but a functional call to find."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 5, 3))

    def forward(self, x):
        b, _, h, w = x.shape
        y = self.weight @ x.view(b, 2, 3, h * w)
        return y.view(b, 10, h, w)


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
def test_a_grouped_convolution_costs_its_groups(groups):
    layer = nn.Conv2d(6, 12, 3, padding=1, groups=groups, bias=True)
    counted = cost(layer, (6, 7, 5))
    assert counted.params == 6 * 12 * 9 // groups + 12
    assert counted.macs == 6 * 12 * 9 // groups * 35
    assert counted.activations == 12 * 35


def test_a_batched_matrix_product_costs_what_the_grouped_convolution_costs():
    layer = Functional()
    convolution = nn.Conv2d(6, 10, 1, groups=2, bias=False)
    convolution.weight.data = layer.weight.data.reshape(10, 3, 1, 1)
    x = torch.randn(1, 6, 4, 3)
    torch.testing.assert_close(layer(x), convolution(x), rtol=1e-5, atol=1e-5)
    ours, reference = cost(layer, (6, 4, 3)), cost(convolution, (6, 4, 3))
    assert (ours.params, ours.macs, ours.activations) == (reference.params, reference.macs, reference.activations)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.b = self.a
        self.c = nn.Conv2d(4, 4, 1, bias=False)
        self.c.weight = nn.Parameter(torch.randn(4, 4, 1, 1))
        self.d = nn.Conv2d(4, 4, 1, bias=False)
        self.d.weight = self.c.weight

    def forward(self, x):
        return self.d(self.c(self.b(self.a(x))))


def test_shared_weights_count_once_and_shared_work_twice():
    counted = cost(Twice(), (4, 5, 5))
    assert counted.params == 4 * 4 * 9 + 16
    assert counted.macs == 2 * 144 * 25 + 2 * 16 * 25
    assert counted.by_layer["a"].macs == 2 * 144 * 25
    assert "b" not in counted.by_layer
    assert counted.by_layer["d"].params == 0


def test_layers_add_up_and_agree_with_torchs_counter():
    model = timm.create_model("resnet18", num_classes=10)
    counted = cost(model, (3, 64, 64))
    for key in ("params", "macs", "activations", "traffic"):
        assert sum(getattr(layer, key) for layer in counted.by_layer.values()) == getattr(counted, key)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 64, 64))
    assert counted.macs * 2 == counter.get_total_flops()
    assert counted.params == sum(p.numel() for p in model.parameters())
    assert counted.activations == _activations_by_hooks(model, torch.zeros(1, 3, 64, 64))


def _activations_by_hooks(model, x):
    total = []
    handles = [
        module.register_forward_hook(lambda _, __, out: total.append(out.numel()))
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    model(x)
    for handle in handles:
        handle.remove()
    return sum(total)


def test_traffic_counts_bytes_moved_and_views_are_free():
    class Shuffle(nn.Module):
        def forward(self, x):
            b, c, h, w = x.shape
            return x.view(b, 2, c // 2, h, w).transpose(1, 2)

    class CopyingShuffle(Shuffle):
        def forward(self, x):
            return super().forward(x).contiguous()

    assert cost(Shuffle(), (4, 3, 3)).traffic == 0
    assert cost(CopyingShuffle(), (4, 3, 3)).traffic == 2 * 4 * 36
    assert cost(nn.Conv2d(4, 8, 1, bias=False), (4, 3, 3)).traffic == 4 * (36 + 32 + 72)


def test_the_model_is_left_as_it_was():
    model = timm.create_model("resnet18", num_classes=3)
    model.layer1.eval()
    modes = [m.training for m in model.modules()]
    before = {k: v.clone() for k, v in model.state_dict().items()}
    cost(model, (3, 32, 32))
    assert [m.training for m in model.modules()] == modes
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key])
    assert not model._forward_hooks
    assert torch.nn.modules.module._global_forward_hooks == {}
    assert model(torch.randn(2, 3, 32, 32)).requires_grad


def test_a_whole_batch_costs_that_many_images():
    model = timm.create_model("resnet18", num_classes=3)
    assert cost(model, (4, 3, 32, 32)).macs == 4 * cost(model, (3, 32, 32)).macs


class DataDependent(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if float(x.sum()) < 1:
            x = x + 1
        return F.relu(self.layer(x))


def test_a_forward_that_looks_at_the_data_is_counted_too():
    assert cost(DataDependent(), (1, 2, 4)).macs == 32


def test_a_failing_model_raises_its_own_error_and_leaves_no_hooks():
    with pytest.raises(RuntimeError):
        cost(nn.Conv2d(3, 4, 3), (5, 8, 8))
    assert torch.nn.modules.module._global_forward_hooks == {}
    assert torch.nn.modules.module._global_forward_pre_hooks == {}


@pytest.mark.parametrize("size", [(), (3,), (3, 4), (0, 4, 4), (1, 2, 3, 4, 5), (3, -1, 4)])
def test_bad_sizes(size):
    with pytest.raises(InvalidArgument, match="three or four positive"):
        cost(nn.Conv2d(3, 4, 3), size)


def test_codes_of_quantised_weights_count_where_they_lie():
    from convsmith.compression import compress

    model = timm.create_model("resnet18", num_classes=3).eval()
    before = cost(model, (3, 32, 32))
    after = cost(compress(model, "int8", example=torch.randn(8, 3, 32, 32)), (3, 32, 32))
    norms = before.params - before.params_as("no-norm")  # folded into the convolutions: one bias for two numbers
    assert after.params == before.params - norms // 2
    assert after.macs == before.macs
    assert after.bytes < 0.26 * before.bytes
    assert before.bytes == 4 * before.params
    assert after.uncounted == before.uncounted == {}
