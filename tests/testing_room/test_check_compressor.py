"""Every compression method passes its suite, and the suite fails on methods that break one rule each."""

from dataclasses import dataclass

import pytest
import torch

from convsmith.compression import METHODS, available
from convsmith.compression.methods.sparse import Sparse
from convsmith.testing import Nonconforming, check_compressor

EXCEPTIONS: dict[str, dict[str, str]] = {}


@pytest.mark.parametrize("name", available())
def test_every_method_conforms(name):
    exceptions = EXCEPTIONS.get(name, {})
    assert check_compressor(name, exceptions=exceptions).excepted == exceptions


@dataclass(frozen=True)
class Draws(Sparse):
    """Draws from the global generator."""

    def apply(self, subject, plan):
        applied = super().apply(subject, plan)
        applied.model[0].weight.data += 1e-2 * torch.rand_like(applied.model[0].weight)
        applied.model[0].weight.data[0, 0, 0, 0] = float(torch.empty(()).uniform_(generator=torch.Generator()))
        self.seen.append(1)
        applied.model[0].weight.data[0, 0, 0, 1] = len(self.seen)
        return applied


Draws.seen = []


@dataclass(frozen=True)
class Greedy(Sparse):
    """Ignores its budget."""

    def apply(self, subject, plan):
        return super().apply(subject, plan).__class__(subject.model, {})


@pytest.mark.parametrize(("method", "rule"), [(Draws, "two results have the same bits"), (Greedy, "are left")])
def test_a_broken_method_is_found(monkeypatch, method, rule):
    available()
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    METHODS.register("broken")(method)
    with pytest.raises(Nonconforming, match=rule):
        check_compressor("broken")
