"""A new module stands wherever the old one stood."""

import pytest
import torch
from torch import nn

from convsmith.compression import compress, compression_history, restore_structure
from convsmith.compression.planning.replacement import put, replace


def test_replace_reaches_every_place_of_a_shared_module():
    model = nn.Module()
    model.a = nn.Linear(2, 2)
    model.list = nn.ModuleList([model.a, nn.Linear(2, 2)])
    new = nn.Linear(2, 2)
    replace(model, "a", new)
    assert model.a is new
    assert model.list[0] is new


class Doubled(nn.Linear):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("activation", ["relu", "gelu", nn.GELU(), torch.tanh])
def test_a_transformer_layer_in_evaluation_calls_the_new_layer(activation):
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dropout=0.0, activation=activation).eval()
    model, x, old = nn.Sequential(layer), torch.randn(2, 3, 8), layer.linear2
    before, number = model(x), layer.activation_relu_or_gelu
    new = Doubled(16, 8)
    new.load_state_dict(old.state_dict())
    replace(model, "0.linear2", new)
    with torch.no_grad():
        fast = model(x)
    assert (fast - before).abs().max() > 1e-3
    torch.testing.assert_close(fast, model(x))
    put(model, new, old)
    assert layer.activation_relu_or_gelu == number
    torch.testing.assert_close(model(x), before)


@pytest.mark.parametrize("method", ["low-rank", "ternary"])
def test_methods_reach_transformer_layers(method):
    model = nn.Sequential(
        nn.Flatten(2), nn.Linear(16, 16), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), nn.Flatten()
    ).eval()
    x = torch.rand(4, 3, 4, 4)
    made = compress(model, method, example=x, **({"keep_macs": 0.8} if method == "low-rank" else {"ends": True}))
    changed = [
        name
        for name, module in made.named_modules()
        if name in ("2.linear1", "2.linear2") and type(module) is not nn.Linear
    ]
    assert changed
    with torch.no_grad():
        fast = made(x)
    torch.testing.assert_close(fast, made(x))
    assert (fast - model(x)).abs().max() > 1e-3
    again = restore_structure(model, compression_history(made))
    again.load_state_dict(made.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again(x), fast)


class Asking(nn.Module):
    """Pads and casts by what its layer says of itself, as DaViT and EdgeNeXt do."""

    def __init__(self):
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, stride=2, bias=False)
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        side = self.body.kernel_size[0] // 2
        x = nn.functional.pad(self.stem(x), [side] * 4).to(self.body.weight.dtype)
        assert x.shape[1] == self.body.in_channels == self.body.weight.shape[1]
        return self.head(self.body(x).mean((2, 3)).to(self.head.weight.device))


@pytest.mark.parametrize(
    ("method", "settings"),
    [("low-rank", {"rank": 0.5}), ("low-rank", {"rank": 0.5, "decomposition": "spatial"}), ("interleave", {})],
)
def test_what_stands_for_a_layer_answers_for_its_sizes(method, settings):
    torch.manual_seed(0)
    model, x = Asking().eval(), torch.randn(4, 3, 8, 8)
    small = compress(model, method, example=x, keep_macs=None if settings else 0.7, **settings)
    assert type(small.body) is not nn.Conv2d
    again = restore_structure(Asking().eval(), compression_history(small))
    again.load_state_dict(small.state_dict())
    assert torch.equal(again(x), small(x))
    assert (small.body.stride, small.body.kernel_size) == ((2, 2), (3, 3))
    assert small.body.weight.shape == model.body.weight.shape
    assert bool(small.body.weight.isnan().all())
    assert "body.weight" not in small.state_dict()
    small.double()
    assert small.body.weight.dtype == torch.float64
