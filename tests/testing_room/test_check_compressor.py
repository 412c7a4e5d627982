"""Every compression method passes its suite, and the suite fails on methods that break one rule each."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from convsmith.compression import METHODS, available
from convsmith.compression.methods.method import Applied
from convsmith.compression.methods.sparse import Sparse
from convsmith.testing import Nonconforming, check_compressor

EXCEPTIONS = {"int8": {"float64": "int8 programs compute in float32; a float64 network is refused by name"}}


@pytest.mark.parametrize("name", available())
def test_every_method_conforms(name):
    exceptions = EXCEPTIONS.get(name, {})
    assert (
        check_compressor(name, tolerance=1e-2 if name == "int8" else 1e-4, exceptions=exceptions).excepted == exceptions
    )


@dataclass(frozen=True)
class Remembers(Sparse):
    """Its second result differs from its first."""

    label: ClassVar[str] = "broken"
    seen: ClassVar = []

    def apply(self, subject, plan):
        applied = super().apply(subject, plan)
        self.seen.append(1)
        applied.model[0].weight.data[0, 0, 0, 1] = len(self.seen)
        return applied


@dataclass(frozen=True)
class Greedy(Sparse):
    """Ignores its budget."""

    label: ClassVar[str] = "broken"

    def apply(self, subject, plan):
        return Applied(subject.model, {})


@pytest.mark.parametrize(("method", "rule"), [(Remembers, "two results have the same bits"), (Greedy, "are left")])
def test_a_broken_method_is_found(monkeypatch, method, rule):
    available()
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    METHODS.register("broken")(method)
    with pytest.raises(Nonconforming, match=rule):
        check_compressor("broken")
