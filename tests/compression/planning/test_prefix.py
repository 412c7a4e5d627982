"""Trials that start at the changed layer give the whole network's numbers, for networks that are easy to cut or not."""

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from convsmith.compression.methods.method import output_error
from convsmith.compression.planning.prefix import Prefix
from convsmith.inspection.trace import trace_layers


class Remembers(nn.Module):
    """The first convolution's list is longer afterwards, and somebody reads it: no output tells."""

    def __init__(self):
        super().__init__()
        self.first, self.second = Notes(), nn.Conv2d(4, 4, 3)

    def forward(self, x):
        notes = []
        y = self.first(x, notes)
        return self.second(y).flatten(1).sum(1, keepdim=True) * notes[0]


class Notes(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x, notes):
        notes.append(3.0)
        return self.conv(x)


class Overwrites(nn.Module):
    """An activation in place changes a map that is read again behind the layer."""

    def __init__(self):
        super().__init__()
        self.stem, self.relu, self.conv = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.stem(x)
        y = self.relu(x)
        return (self.conv(y) + x).flatten(1)


class Twice(nn.Module):
    """One layer runs at two places, and a list of maps grows."""

    def __init__(self):
        super().__init__()
        self.stem, self.body, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(12, 5)

    def forward(self, x):
        maps = [self.stem(x)]
        maps += [self.body(maps[-1])]
        maps[-1] += maps[0]
        maps += [self.body(maps[-1])]
        return self.head(torch.cat(maps, 1).mean((2, 3)))


NETWORKS = {
    "remembers": Remembers,
    "overwrites": Overwrites,
    "twice": Twice,
    "resnet18": lambda: torchvision.models.resnet18(num_classes=5),
    "densenet": lambda: torchvision.models.DenseNet(8, (2, 2), 16, num_classes=5),
    "shufflenet": lambda: torchvision.models.shufflenet_v2_x0_5(num_classes=5),
    "vit": lambda: timm.create_model("vit_tiny_patch16_224", img_size=32, depth=2, num_classes=5),
    "encoder": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 8, 8), nn.Flatten(2), nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_changed_alone(name):
    torch.manual_seed(0)
    images, model = torch.randn(4, 3, 32, 32), NETWORKS[name]().eval()
    seen = trace_layers(model, images)
    prefix = Prefix(model, seen, 3)
    layers = [layer for layer in seen.layers if layer.problem is None]
    for layer in [*layers, layers[0], layers[-1]]:
        prefix.before([layer.module])
        old = layer.module.weight.detach().clone()
        with torch.no_grad():
            layer.module.weight.mul_(torch.rand_like(old))
            expected = output_error(seen.output[:3], model(images[:3]))
            assert prefix.error() == pytest.approx(expected, rel=1e-4)
            assert expected > 1e-6
            layer.module.weight.copy_(old)
    assert not [name for name, module in model.named_modules() if "forward" in vars(module)]


@pytest.mark.parametrize("name", ["resnet18", "densenet", "vit"])
def test_what_lies_before_runs_once(name):
    images, model = torch.randn(4, 3, 32, 32), NETWORKS[name]().eval()
    seen = trace_layers(model, images)
    prefix = Prefix(model, seen, 4)
    layers = [layer for layer in seen.layers if layer.problem is None]
    prefix.before([layers[-2].module])
    with FlopCounterMode(display=False) as part:
        prefix.error()
    with FlopCounterMode(display=False) as whole, torch.no_grad():
        model(images)
    by_layer = {layer.name: layer.macs for layer in layers}
    left = sum(by_layer[layer.name] for layer in layers[-2:]) / sum(by_layer.values())
    assert left / 2 < part.get_total_flops() / whole.get_total_flops() < left + 0.2


@pytest.mark.parametrize("name", ["remembers", "overwrites"])
def test_a_network_that_cannot_be_cut_runs_whole(name):
    images, model = torch.randn(4, 3, 32, 32), NETWORKS[name]().eval()
    seen = trace_layers(model, images)
    prefix = Prefix(model, seen, 4)
    prefix.before([seen.layers[-1].module])
    assert prefix.whole
    assert prefix.error() == 0
