"""What the routing studies share: real digits, two small VGG-style networks and the way they are trained.

UCI optical digits (1,797 images, 8 x 8, scikit-learn), divided by `convsmith.data`. Both networks have seven
convolutions with 800 channels in all; one is plain, one has BatchNorm after every convolution. Gates sit on
convolutions of the plain one and on activations of the other (`sites="auto"`).
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor, nn

from convsmith.data import ImageData, load

DATA = "UCI optical digits (scikit-learn), 8 x 8, images the network was not trained on"
KINDS = ("plain", "normalised")
WIDTHS = (64, 64, 96, 96, 160, 160, 160)
EPOCHS, BATCH, RATE = 15, 64, 2e-3


@lru_cache(maxsize=1)
def digits() -> ImageData:
    """Load the digits, normalised."""
    return load("digits", seed=0)


def build(kind: str) -> nn.Module:
    """Return the untrained network."""
    layers: list[nn.Module] = []
    before = 1
    for place, width in enumerate(WIDTHS):
        layers.append(nn.Conv2d(before, width, 3, padding=1))
        if kind == "normalised":
            layers.append(nn.BatchNorm2d(width))
        layers.append(nn.ReLU(inplace=True))
        if place in (1, 3):
            layers.append(nn.MaxPool2d(2))
        before = width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, 10))


@lru_cache(maxsize=8)
def network(kind: str, seed: int, device: str = "cpu", epochs: int = EPOCHS) -> nn.Module:
    """Train one network: AdamW, cosine schedule, no augmentation; initial weights and order by ``seed``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(kind).to(device)
        train = digits().train.fetch(range(len(digits().train)))
        x, y = train.images.to(device), train.labels.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=1e-3)
        steps = epochs * (len(x) // BATCH)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(epochs):
            for rows in torch.randperm(len(x))[: len(x) // BATCH * BATCH].split(BATCH):
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                schedule.step()
    optimizer.zero_grad(set_to_none=True)
    return model.eval()


def held_out(seed: int, count: int, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Return ``count`` test images, labels and numbers, drawn by ``seed``."""
    split = digits().test
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:count]
    batch = split.fetch(chosen).to(device)
    return batch.images, batch.labels, batch.index
