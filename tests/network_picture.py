"""A small network that has everything that can be lost, and all of it that a caller can see."""

import copy

import torch
from torch import nn

IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 3])


def hook(module, args, output):
    """Stand for somebody's own hook."""


def network():
    """Return a small network with everything that can be lost: a hook, frozen weights, a gradient, a note, a buffer."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 5),
    )
    model(IMAGES + 1)  # statistics of its own
    model.eval()
    model[0].weight.requires_grad_(False)
    model[10].weight.grad = torch.ones_like(model[10].weight)
    model[6].register_forward_hook(hook)
    model[6].register_buffer("kept", torch.arange(3), persistent=False)
    model.note = ["mine"]
    return model


def mixed(model):
    """Return the network in training mode, but for one layer."""
    model.train()
    model[1].eval()
    return model


def picture(model):
    """Return all of a network that a caller can see."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        flags = [m.training for m in model.modules()]
        outputs = copy.deepcopy(model).eval()(IMAGES)
    tensors = [*model.named_parameters(remove_duplicate=False), *model.named_buffers(remove_duplicate=False)]
    return {
        "modules": [(name, id(m), type(m)) for name, m in model.named_modules(remove_duplicate=False)],
        "tensors": [(name, id(t), t.requires_grad, t.dtype, t.device) for name, t in tensors],
        "values": [t.detach().clone() for _, t in tensors],
        "gradients": [(None if t.grad is None else (id(t.grad), t.grad.clone().tolist())) for _, t in tensors],
        "flags": flags,
        "hooks": [
            {key: list(value.items()) for key, value in vars(m).items() if "_hooks" in key and hasattr(value, "items")}
            for m in model.modules()
        ],
        "attributes": [sorted(vars(m)) for m in model.modules()],
        "note": getattr(model, "note", None),
        "outputs": outputs,
    }


def assert_unchanged(model, before):
    after = picture(model)
    for key in before:
        if key in ("values", "outputs"):
            torch.testing.assert_close(after[key], before[key], rtol=0, atol=0, msg=f"the {key} changed")
        else:
            assert after[key] == before[key], f"the {key} changed"
