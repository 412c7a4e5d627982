"""One small network trained on the embedded digits, shared by all tests of the room."""

import copy
from dataclasses import dataclass

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn


@dataclass(frozen=True)
class Digits:
    model: nn.Module
    train_x: torch.Tensor
    train_y: torch.Tensor
    test_x: torch.Tensor
    test_y: torch.Tensor


def small_net(widths=(16, 32, 32), classes=10, channels=1):
    first, second, third = widths
    return nn.Sequential(
        nn.Conv2d(channels, first, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(first, second, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(second, third, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(third, classes),
    )


@pytest.fixture(scope="session")
def _trained():
    data = load_digits()
    x = torch.tensor(data.images, dtype=torch.float32)[:, None] / 16
    y = torch.tensor(data.target)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    train, test = order[:1200], order[1200:]
    torch.manual_seed(0)
    model = small_net()
    optimizer = torch.optim.Adam(model.parameters(), 4e-3)
    for _ in range(18):
        for rows in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
            optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    model.eval()
    return Digits(model, x[train], y[train], x[test], y[test])


@pytest.fixture
def digits(_trained):
    """The trained network (a fresh copy, so that a test cannot hand its damage on) and both splits."""
    return Digits(copy.deepcopy(_trained.model), _trained.train_x, _trained.train_y, _trained.test_x, _trained.test_y)
