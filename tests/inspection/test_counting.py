"""MACs by hand for every kind of operator that contracts, executed and fake, and the names of what nobody can count."""

import math

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from convsmith.inspection.counting import count_operations
from convsmith.pooling.layers import POOLINGS


def total(model, *size, fake=True):
    return sum(count.macs for count in count_operations(model, size, fake=fake).by_module.values())


class Using(nn.Module):
    """``function(layer, x)`` as a module."""

    def __init__(self, layer, function):
        super().__init__()
        self.layer, self.function = layer, function

    def forward(self, x):
        return self.function(self.layer, x)


def first(layer, x):
    return layer(x)[0]


def attend(layer, x):
    return layer(x, x, x)[0]


def packed(layer, x):
    return layer(nn.utils.rnn.pack_padded_sequence(x, torch.tensor([5, 3])))[0].data


def deform(layer, x):
    places = torch.zeros(len(x), 18, 6, 6, dtype=x.dtype, device=x.device)
    return torchvision.ops.deform_conv2d(x, places, layer.weight, padding=1)


CASES = {
    "attention": (Using(nn.MultiheadAttention(8, 2, batch_first=True), attend), (1, 12, 8), 5_376),
    "attention of one batch of three": (
        Using(nn.MultiheadAttention(8, 2, batch_first=True), attend),
        (3, 12, 8),
        16_128,
    ),
    "transformer layer": (nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (1, 4, 16), 8_704),
    "lstm": (Using(nn.LSTM(4, 5), first), (25, 1, 4), 25 * 4 * 5 * (4 + 5)),
    "lstm, two layers, two directions": (
        Using(nn.LSTM(4, 5, 2, bidirectional=True), first),
        (25, 1, 4),
        25 * 2 * 4 * 5 * ((4 + 5) + (10 + 5)),
    ),
    "packed lstm": (Using(nn.LSTM(4, 5), packed), (5, 2, 4), 8 * 4 * 5 * (4 + 5)),
    "gru": (Using(nn.GRU(4, 5), first), (25, 1, 4), 25 * 3 * 5 * (4 + 5)),
    "rnn": (Using(nn.RNN(4, 5), first), (25, 1, 4), 25 * 5 * (4 + 5)),
    "lstm cell": (Using(nn.LSTMCell(4, 5), first), (2, 4), 2 * 4 * 5 * (4 + 5)),
    "bilinear": (Using(nn.Bilinear(4, 6, 3), lambda layer, x: layer(x[:, :4], x)), (7, 6), 7 * 4 * 6 * 3),
    "embedding": (Using(nn.Embedding(9, 4), lambda layer, x: layer(x.long())), (2, 3), 0),
    "weighted embedding bag": (
        Using(nn.EmbeddingBag(9, 4, mode="sum"), lambda layer, x: layer(x.long(), per_sample_weights=x)),
        (2, 3),
        2 * 3 * 4,
    ),
    "deformable convolution": (Using(nn.Conv2d(4, 5, 3, bias=False), deform), (1, 4, 6, 6), 36 * 5 * 4 * 9),
    "transposed convolution": (nn.ConvTranspose2d(4, 6, 3, groups=2), (1, 4, 5, 5), 25 * 4 * 3 * 9),
    "matrix and vector": (Using(None, lambda _, x: torch.mv(x, x[0])), (3, 4), 12),
    "vectors": (Using(None, lambda _, x: torch.dot(x, x)), (7,), 7),
    "einsum": (Using(None, lambda _, x: torch.einsum("bij,bjk->bik", x, x)), (2, 3, 3), 2 * 27),
    "distances": (Using(None, lambda _, x: torch.cdist(x, x, 1.0)), (5, 3), 75),
    "cholesky": (Using(None, lambda _, x: torch.linalg.cholesky(x @ x.mT + torch.eye(6))), (6, 6), 216 + 36),
    "solve": (Using(None, lambda _, x: torch.linalg.solve(x, x[:, :2])), (6, 6), 72 + 72),
    "inverse": (Using(None, lambda _, x: torch.linalg.inv(x)), (6, 6), 216),
    "determinant": (Using(None, lambda _, x: torch.linalg.det(x)), (6, 6), 72),
    "qr": (Using(None, lambda _, x: torch.linalg.qr(x)[1]), (5, 3), 2 * (5 * 9 - 9)),
    "elementwise": (Using(None, lambda _, x: F.gelu(x * x).softmax(-1)), (6, 6), 0),
}


@pytest.mark.parametrize("fake", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_hand_counts(name, fake):
    model, size, macs = CASES[name]
    counted = count_operations(model, size, fake=fake)
    assert sum(count.macs for count in counted.by_module.values()) == macs
    assert counted.uncounted == {}


def test_masks_do_not_lower_the_count_of_attention():
    def causal(_, x):
        return F.scaled_dot_product_attention(x, x, x, is_causal=True)

    assert (
        total(Using(None, causal), 2, 4, 6, 8)
        == total(Using(None, causal), 2, 4, 6, 8, fake=False)
        == 2 * 4 * 6 * 6 * 16
    )


@pytest.mark.parametrize(
    ("make", "macs"),
    [
        (lambda: torchvision.models.vit_b_32(weights=None), 4_409_186_304),
        (lambda: timm.create_model("vit_tiny_patch16_224"), 1_253_683_200),
    ],
)
def test_vision_transformers(make, macs):
    with torch.device("meta"):
        model = make()
    assert total(model.to_empty(device="cpu"), 1, 3, 224, 224) == macs


@pytest.mark.parametrize("shape", [(2, 24, 3, 3), (2, 24, 14, 14), (5, 200, 15, 15)])
@pytest.mark.parametrize("name", POOLINGS.names())
def test_fake_counts_are_executed_counts_for_every_pooling(name, shape):
    layer = POOLINGS[name](shape[1])
    fake, executed = (count_operations(layer, shape, fake=fake) for fake in (True, False))
    # traffic differs: with values at hand a pooling also looks whether they are finite
    work = [{n: (c.macs, c.activations) for n, c in x.by_module.items() if c.macs} for x in (fake, executed)]
    assert work[0] == work[1]
    assert fake.uncounted == executed.uncounted
    assert set(fake.uncounted) <= {
        "aten::_linalg_eigh",
        "aten::_linalg_svd",
    }  # decompositions that iterate until they converge


def test_what_nobody_can_count_is_named_with_its_module():
    @torch.library.custom_op("convsmith_tests::mystery", mutates_args=())
    def mystery(x: torch.Tensor) -> torch.Tensor:
        return x @ x

    mystery.register_fake(torch.empty_like)
    model = nn.Sequential(nn.Linear(4, 4), Using(None, lambda _, x: mystery(torch.linalg.svd(x)[0])))
    counted = count_operations(model, (4, 4))
    assert counted.uncounted == {"aten::_linalg_svd": ("1",), "convsmith_tests::mystery": ("1",)}
    assert counted.by_module["0"].macs == 64


@pytest.mark.parametrize("name", ["swin_t", "shufflenet_v2_x0_5", "densenet121", "maxvit_t", "googlenet"])
def test_ordinary_networks_have_no_uncounted_operator(name):
    with torch.device("meta"):
        model = torchvision.models.get_model(name, weights=None)
    counted = count_operations(model, (1, 3, 224, 224))
    assert counted.uncounted == {}
    assert math.isclose(sum(count.macs for count in counted.by_module.values()), PUBLISHED[name], rel_tol=0.02)


#: GMACs that torchvision prints beside these weights (``_ops``)
PUBLISHED = {
    "swin_t": 4.491e9,
    "shufflenet_v2_x0_5": 0.040e9,
    "densenet121": 2.834e9,
    "maxvit_t": 5.558e9,
    "googlenet": 1.498e9,
}


def test_the_fast_path_of_attention_comes_back():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    before = torch.backends.mha.get_fastpath_enabled()
    count_operations(model, (1, 4, 16))
    with pytest.raises(AssertionError):
        count_operations(model, (1, 4, 17))
    assert torch.backends.mha.get_fastpath_enabled() == before


def test_a_network_that_keeps_what_its_forward_made_keeps_nothing_fake():
    class Keeping(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.kept = nn.Linear(4, 3), None

        def forward(self, x):
            if self.kept is None:
                self.kept = torch.arange(4.0)
            return self.layer(x + self.kept)

    model = Keeping()
    assert total(model, 2, 4) == 2 * 4 * 3
    assert model.kept is None
    assert type(model(torch.zeros(2, 4))) is torch.Tensor
