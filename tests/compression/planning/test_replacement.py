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
