"""Every explainer passes its suite, and the suite fails on scores that break one rule each."""

from functools import partial

import pytest
import torch

from convsmith.interpretation import SCORES, find_routes
from convsmith.testing import Nonconforming, check_explainer

EXCEPTIONS = {
    "random": {"samples apart": "one stream of random numbers: its row is a place in the batch, not an image"}
}


@pytest.mark.parametrize("name", SCORES.names())
def test_every_score_conforms(name):
    exceptions = EXCEPTIONS.get(name, {})
    assert check_explainer(name, exceptions=exceptions).excepted == exceptions


@pytest.mark.parametrize("mode", ["converged", "paper"])
def test_both_solvers_conform(mode):
    assert not check_explainer(partial(find_routes, mode=mode), tolerance=2e-2).excepted


def negative(request):
    """Scores below zero."""
    return -request.ones


def draws(request):
    """Reads the global generator."""
    return torch.rand_like(request.ones)


def mixes(request):
    """One image's scores depend on the others."""
    return request.ones * request.network.images.mean().abs()


@pytest.mark.parametrize(
    ("function", "rule"), [(negative, "not negative"), (draws, "global generator"), (mixes, "samples apart")]
)
def test_a_broken_score_is_found(monkeypatch, function, rule):
    SCORES.names()
    monkeypatch.setattr(SCORES, "_entries", dict(SCORES._entries))
    SCORES.register("broken")(function)
    with pytest.raises(Nonconforming, match=rule):
        check_explainer("broken")
