"""Every adaptation method passes its suite, and the suite fails on methods that break one rule each."""

import pytest
import torch

from convsmith.adaptation import METHODS, MethodConfig, available
from convsmith.adaptation.methods.source_only import SourceOnly
from convsmith.testing import Nonconforming, check_adapter
from convsmith.training.task import Losses

SMALL = {
    "ar": {"critic_steps": 3, "critic_hidden": 4},
    "arpm": {"critic_steps": 3, "critic_hidden": 4, "neighbours": 2, "second_neighbours": 2},
    **{name: {"hidden": (5,)} for name in ("dann", "cdan", "adda", "san", "pada", "iwan", "etn", "ba3us")},
}


@pytest.mark.parametrize("name", available())
def test_every_method_conforms(name):
    assert not check_adapter(name, settings=SMALL.get(name)).excepted


class Peeks(SourceOnly):
    """Reads target labels."""

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        return Losses(losses.total + batch.target.labels.float().mean(), losses.parts)


class Counts(SourceOnly):
    """Remembers its steps outside the state."""

    calls = 0

    def forward(self, batch, step):
        self.calls += 1
        losses = super().forward(batch, step)
        return Losses(losses.total * self.calls, losses.parts)


class Forgets(SourceOnly):
    """Leaves the classifier out of its groups."""

    def parameter_groups(self, lr):
        return super().parameter_groups(lr)[:1]


class Spoils(SourceOnly):
    """Writes into the images."""

    def forward(self, batch, step):
        batch.source.images.clamp_(max=0.1)
        return super().forward(batch, step)


class Overflows(SourceOnly):
    """Takes the fourth power of pixels."""

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        return Losses(losses.total + batch.target.images.pow(4).mean(), losses.parts)


class Silent(SourceOnly):
    """Gives no gradient."""

    def forward(self, batch, step):
        losses = super().forward(batch, step)
        return Losses(losses.total.detach().requires_grad_(), {"classification": torch.tensor(float("nan"))})


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        (Peeks, "no target label"),
        (Counts, "state dict and copies"),
        (Forgets, "parameter groups"),
        (Spoils, "a step changes no image"),
        (Overflows, "the loss is finite, 1e12"),
        (Silent, "classification is a finite scalar"),
    ],
)
def test_a_broken_method_is_found(monkeypatch, method, rule):
    available()
    monkeypatch.setattr(METHODS, "_entries", dict(METHODS._entries))
    METHODS.register("broken", settings=MethodConfig, partial=False)(method)
    with pytest.raises(Nonconforming, match=rule):
        check_adapter("broken")
