"""Whether a model is what it was: weights, flags, gradients, modes, hooks."""

import torch


def snapshot(model):
    return {
        "state": {k: (v.clone(), v._version) for k, v in model.state_dict().items()},
        "flags": [p.requires_grad for p in model.parameters()],
        "grads": [p.grad for p in model.parameters()],
        "modes": [m.training for m in model.modules()],
        "hooks": [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()],
        "patched": ["forward" in m.__dict__ for m in model.modules()],
    }


def assert_untouched(model, before):
    after = snapshot(model)
    for key, (value, version) in before["state"].items():
        assert torch.equal(after["state"][key][0], value), key
        assert after["state"][key][1] == version, key
    for part in ("flags", "modes", "hooks", "patched"):
        assert after[part] == before[part], part
    assert all(a is b for a, b in zip(before["grads"], after["grads"], strict=True))
