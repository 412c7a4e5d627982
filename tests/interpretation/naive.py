"""The published search for one image, written slowly and plainly from its description; nothing of ours is used."""

import torch
from torch import nn


def gated_logits(model, x, gates):
    """Run a Sequential and multiply every convolution's output by its gates."""
    place = 0
    for layer in model:
        x = layer(x)
        if isinstance(layer, nn.Conv2d):
            x = x * gates[place].view(1, -1, 1, 1)
            place += 1
    return x


def naive_paper(model, x, gamma=0.05, steps=30, rate=0.1, momentum=0.9, upper=5.0):
    """One image [1, C, H, W]: torch.optim.SGD on a list of gates, the lowest loss that keeps the label."""
    assert len(x) == 1
    with torch.no_grad():
        p = model(x).softmax(1)
    widths = [layer.out_channels for layer in model if isinstance(layer, nn.Conv2d)]
    gates = [torch.ones(w, dtype=x.dtype, requires_grad=True) for w in widths]
    optimizer = torch.optim.SGD(gates, lr=rate, momentum=momentum)
    best, lowest = None, float("inf")
    for _ in range(steps):
        q = gated_logits(model, x, gates).softmax(1)
        loss = -(p * torch.log(q + 1e-20)).sum() + gamma * sum(g.abs().sum() for g in gates)
        if q.argmax() == p.argmax() and loss.item() < lowest:
            best, lowest = torch.cat([g.detach().clone() for g in gates]), loss.item()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for g in gates:
                g.clamp_(0, upper)
    return best, torch.tensor(lowest, dtype=x.dtype)
