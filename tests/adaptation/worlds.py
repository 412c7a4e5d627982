"""Small worlds for the methods' tests: digits drawn as blobs of light, seven classes against three."""

import torch
from torch import nn

from convsmith.data import DomainLoader, Loader, from_arrays

K, SHARED = 5, (0, 1, 2)


def blobs(labels, shift, seed, side=8):
    """Images with one bright spot whose place is the class; ``shift`` moves brightness and contrast."""
    g = torch.Generator().manual_seed(seed)
    images = 0.25 * torch.rand(len(labels), 1, side, side, generator=g)
    for row, label in enumerate(labels.tolist()):
        y, x = divmod(label, 3)
        images[row, 0, 1 + 2 * y : 3 + 2 * y, 1 + 2 * x : 3 + 2 * x] += 0.6 - shift
    return (images + 0.15 * shift).clamp(0, 1)


def world(n=60, m=40, seed=0, shift=0.25):
    """A source split of K classes and a target split of the SHARED ones, both [*, 1, 8, 8]."""
    source_labels, target_labels = torch.arange(n) % K, torch.arange(m) % len(SHARED)
    names = [f"c{k}" for k in range(K)]
    source = from_arrays(blobs(source_labels, 0.0, seed), source_labels, classes=names)
    target = from_arrays(blobs(target_labels, shift, seed + 1), target_labels, classes=names)
    return source, target


def loader(source, target, batch=12, seed=0):
    return DomainLoader(
        Loader(source, batch, seed=seed, shuffle=True, drop_last=True),
        Loader(target, batch, seed=seed, shuffle=True, drop_last=True),
    )


def network(seed=0, norm=False, width=8):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4) if norm else nn.Identity(),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, width),
        nn.ReLU(),
        nn.Linear(width, K),
    )
