"""Small networks with everything that makes compression go wrong, used by several test files."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def randomised(module):
    """Give every normalisation its own statistics and affine, in evaluation mode and float64."""
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias)
            layer.running_mean.normal_()
            layer.running_var.uniform_(0.5, 2.0)
    return module.double().eval()


class OddNetwork(nn.Module):
    """Grouped, depthwise, transposed, shared, functional, tied and dead layers, and two ordinary ones."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.depthwise = nn.Conv2d(12, 12, 3, padding=1, groups=12)
        self.shared = nn.Conv2d(12, 12, 3, padding=1)
        self.up = nn.ConvTranspose2d(12, 8, 3, stride=2, padding=1, output_padding=1)
        self.functional = nn.Conv2d(8, 8, 1)
        self.tied_a = nn.Linear(8, 8)
        self.tied_b = nn.Linear(8, 8)
        self.tied_b.weight = self.tied_a.weight
        self.wide = nn.Conv2d(8, 10, 3, padding=1)
        self.narrow = nn.Conv2d(10, 8, 3, padding=1)
        self.never = nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.depthwise(F.relu(self.grouped(x))))
        x = F.relu(self.shared(F.relu(self.shared(x))))
        x = self.up(x)
        x = F.relu(F.conv2d(x, self.functional.weight * 2, self.functional.bias))
        x = self.narrow(F.relu(self.wide(x)))
        x = self.tied_b(F.relu(self.tied_a(x.mean((2, 3)))))
        return self.head(x)


class PlainNetwork(nn.Module):
    """Two blocks with a residual sum and batch normalisation, 8x8 images of one channel."""

    def __init__(self, width=16, classes=5):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, width, (3, 3), stride=2, padding=1)
        self.fc = nn.Linear(width, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        x = x + F.relu(self.bn2(self.conv2(x)))
        x = F.relu(self.conv3(x))
        return self.fc(x.mean((2, 3)))


def settle(model, example):
    """Give batch normalisation statistics of its own, so that it does something in evaluation mode."""
    model.train()
    with torch.no_grad():
        for _ in range(3):
            model(example)
    return model.eval()


@pytest.fixture(scope="session")
def Odd():
    return OddNetwork


@pytest.fixture(scope="session")
def Plain():
    return PlainNetwork


@pytest.fixture(scope="session")
def settled():
    return settle
