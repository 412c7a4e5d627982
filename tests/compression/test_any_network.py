"""Networks that are no plain classifier: wrappers, other outputs, transformers. Compressed, or named and left alone."""

import pytest
import torch
from torch import nn

from convsmith.compression import compress, compression_history, plan_compression
from convsmith.errors import InvalidArgument


class Segments(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.body = nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 4, 1)

    def forward(self, x):
        features = torch.relu(self.body(torch.relu(self.stem(x))))
        return {"out": self.out(features), "features": features}


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.patch = nn.Conv2d(3, 16, 4, 4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        return self.head(self.block(self.patch(x).flatten(2).mT).mean(1))


IMAGES = torch.randn(64, 3, 12, 12, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("method", ["low-rank", "prune-filters", "interleave", "sparse"])
def test_a_dictionary_of_maps(method):
    torch.manual_seed(0)
    model = Segments().eval()
    made = compress(model, method, example=IMAGES, keep_macs=0.7)
    assert set(made(IMAGES[:2])) == {"out", "features"}
    assert compression_history(made)[0]["layers"]


@pytest.mark.parametrize("method", ["low-rank", "binary", "ternary"])
def test_no_compressed_layer_of_a_transformer_is_bypassed(method):
    """In evaluation mode torch's encoder layer reads weights past their layers: what it reads so is left alone."""
    torch.manual_seed(0)
    model = Encoder().eval()
    made = compress(model, method, example=IMAGES)
    (entry,) = compression_history(made)
    inside = [name for name in entry["layers"] if name.startswith("block.")]
    assert inside
    with torch.no_grad():
        quick = made(IMAGES[:4])
    whole = made(IMAGES[:4])  # with gradients torch calls every layer
    torch.testing.assert_close(quick, whole, atol=1e-5, rtol=1e-5)
    left = {name for name, _ in model.named_modules() if name.startswith("block.linear")} - set(inside)
    assert all(name in entry["skipped"] for name in left)


def test_wrappers_are_taken_off_and_scripts_refused():
    torch.manual_seed(0)
    model = Segments().eval()
    made = compress(nn.DataParallel(model), "low-rank", example=IMAGES, keep_macs=0.7)
    assert isinstance(made, Segments)
    assert isinstance(compress(torch.compile(model), "binary", example=IMAGES), Segments)
    with pytest.raises(InvalidArgument, match="scripted"):
        compress(torch.jit.trace(nn.Conv2d(3, 4, 1), IMAGES[:1]), "low-rank", example=IMAGES)


def test_what_no_layer_can_satisfy_names_layers_and_reasons():
    model = nn.Sequential(nn.Conv2d(3, 4, 1, groups=1, padding_mode="reflect"), nn.Flatten(), nn.Linear(576, 2)).eval()
    with pytest.raises(InvalidArgument, match="reflect"):
        plan_compression(model, "interleave", example=IMAGES, keep_macs=0.5)
