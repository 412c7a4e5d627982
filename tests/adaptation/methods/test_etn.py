"""ETN's auxiliary loss against its formula, computed where no autocast acts: one on a GPU refuses it."""

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from convsmith.adaptation.methods.etn import leaky_softmax
from tests.adaptation.test_methods import task_of
from tests.adaptation.worlds import K, world


def test_the_auxiliary_loss_is_computed_outside_of_autocast(monkeypatch):
    g = torch.Generator().manual_seed(0)
    source, target = (leaky_softmax(3 * torch.randn(6, K, generator=g)) for _ in range(2))
    labels = torch.arange(6) % K
    one_hot = F.one_hot(labels, K)
    classes = -(one_hot * source.log() + (1 - one_hot) * (1 - source).log()).sum(1).mean()
    domains = -source.sum(1).log().mean() - (1 - target.sum(1)).log().mean()

    real = F.binary_cross_entropy

    def refusing(*arguments, **named):
        if torch.is_autocast_enabled("cpu"):
            raise RuntimeError("unsafe to autocast")
        return real(*arguments, **named)

    monkeypatch.setattr(F, "binary_cross_entropy", refusing)
    task = task_of("etn", 4, *world())
    assert_close(task._auxiliary_loss(source, target, labels), classes + domains)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(task._auxiliary_loss(source, target, labels), classes + domains)
