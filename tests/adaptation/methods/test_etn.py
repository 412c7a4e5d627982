"""ETN's auxiliary loss against torch's own cross-entropy, which autocast on a GPU refuses."""

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from convsmith.adaptation.methods.etn import leaky_softmax
from tests.adaptation.test_methods import task_of
from tests.adaptation.worlds import K, world


def test_the_auxiliary_loss_is_torchs_cross_entropy_by_allowed_operators(monkeypatch):
    g = torch.Generator().manual_seed(0)
    source, target = (leaky_softmax(3 * torch.randn(6, K, generator=g)) for _ in range(2))
    labels = torch.arange(6) % K
    classes = F.binary_cross_entropy(source, F.one_hot(labels, K).float(), reduction="none").sum(1).mean()
    domains = -source.sum(1).log().mean() - (1 - target.sum(1)).log().mean()

    def refuse(*_, **__):
        raise RuntimeError("unsafe to autocast")

    monkeypatch.setattr(F, "binary_cross_entropy", refuse)
    found = task_of("etn", 4, *world())._auxiliary_loss(source, target, labels)
    assert_close(found, classes + domains)
