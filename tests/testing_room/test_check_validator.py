"""Every validator passes its suite, and the suite fails on validators that break one rule each."""

import pytest
import torch

from convsmith.adaptation.evaluation import validators
from convsmith.testing import Nonconforming, check_validator


@pytest.mark.parametrize("name", validators.available())
def test_every_validator_conforms(name):
    assert not check_validator(name).excepted


def first_row(p):
    """Depends on the order of the images."""
    return float(p[0].max())


def noise(p):
    """Draws from the global generator."""
    return float(torch.rand(()))


def spoils(p):
    """Writes into its evidence."""
    p.copy_(p.flip(0).clone())
    return 0.0


def infinite(p):
    """Never finite."""
    return float("inf")


@pytest.mark.parametrize(
    ("function", "rule"),
    [
        (first_row, "order of images"),
        (noise, "global generator"),
        (spoils, "argument 0 changed"),
        (infinite, "finite float"),
    ],
)
def test_a_broken_validator_is_found(monkeypatch, function, rule):
    validators.available()
    monkeypatch.setattr(validators.VALIDATORS, "_entries", dict(validators.VALIDATORS._entries))
    traits = {"needs": ("target_probabilities",), "higher_is_better": True, "uses_target_labels": False}
    validators.VALIDATORS.register("broken", **traits)(function)
    with pytest.raises(Nonconforming, match=rule):
        check_validator("broken")
