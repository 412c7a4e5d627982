"""Compression needs no class scores: networks that return dictionaries and tuples go through every method."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from convsmith.compression import compress, compression_history, cost, restore_structure


class Segmenter(nn.Module):
    """Two heads on one body, as detection and segmentation networks have them."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(3, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 3, padding=1), nn.ReLU(), nn.Conv2d(32, 32, 1)
        )
        self.out, self.box = nn.Conv2d(32, 5, 1), nn.Conv2d(32, 4, 1)

    def forward(self, x):
        y = F.relu(self.body(x))
        return {"out": self.out(y), "boxes": (self.box(y), torch.arange(4))}


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Segmenter().eval()


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("low-rank", {"keep_macs": 0.7}),
        ("prune-filters", {"keep_macs": 0.7}),
        ("prune-channels", {"keep_macs": 0.7}),
        ("interleave", {"keep_macs": 0.8}),
        ("sparse", {"sparsity": 0.5}),
        ("ternary", {}),
        ("int8", {}),
    ],
)
def test_every_method_takes_a_network_with_two_heads(model, method, settings):
    x = torch.rand(8, 3, 12, 12)
    made = compress(model, method, example=x, **settings)
    with torch.no_grad():
        found, before = made(x), model(x)
    assert found["out"].shape == before["out"].shape
    assert found["boxes"][0].shape == before["boxes"][0].shape
    assert not torch.equal(found["out"], before["out"])
    if "keep_macs" in settings:
        share = cost(made, (3, 12, 12)).macs / cost(model, (3, 12, 12)).macs
        assert settings["keep_macs"] - 0.05 < share <= settings["keep_macs"] * 1.01
    again = restore_structure(model, compression_history(made))
    again.load_state_dict(made.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x)["out"], found["out"])
