"""The temperature is the minimum of a convex loss, and weights move it."""

import pytest
import torch
from torch.nn import functional as F
from torch.testing import assert_close

from convsmith.adaptation.evaluation.calibration import fit_temperature
from convsmith.errors import InvalidArgument


def overconfident(n=4000, factor=3.0, seed=0):
    g = torch.Generator().manual_seed(seed)
    honest = torch.randn(n, 4, generator=g, dtype=torch.float64) * 2
    labels = torch.multinomial(honest.softmax(1), 1, generator=g)[:, 0]
    return honest * factor, labels


def test_it_finds_the_factor_of_overconfidence():
    logits, labels = overconfident()
    assert_close(fit_temperature(logits, labels), 3.0, rtol=0.1, atol=0)


def test_no_other_temperature_is_better():
    logits, labels = overconfident(n=300)
    w = torch.rand(300, dtype=torch.float64)
    loss = lambda t: float((w / w.sum() * F.cross_entropy(logits / t, labels, reduction="none")).sum())  # noqa: E731
    best = fit_temperature(logits, labels, w)
    assert all(loss(best) <= loss(best * f) + 1e-9 for f in (0.5, 0.9, 0.99, 1.01, 1.1, 2.0))


def test_weights_choose_whose_confidence_counts():
    sure, sure_labels = overconfident(factor=4.0, seed=1)
    honest, honest_labels = overconfident(factor=1.0, seed=2)
    logits, labels = torch.cat([sure, honest]), torch.cat([sure_labels, honest_labels])
    on_first = torch.cat([torch.ones(4000), torch.zeros(4000)])
    assert_close(fit_temperature(logits, labels, on_first), 4.0, rtol=0.1, atol=0)
    assert_close(fit_temperature(logits, labels, 1 - on_first), 1.0, rtol=0.1, atol=0)


def test_perfect_and_empty_input():
    assert fit_temperature(torch.eye(3) * 5, torch.arange(3)) == pytest.approx(0.05, rel=0.01)
    with pytest.raises(InvalidArgument, match="labelled logits"):
        fit_temperature(torch.zeros(0, 3), torch.zeros(0, dtype=torch.long))
    with pytest.raises(InvalidArgument, match="count the logits' columns"):
        fit_temperature(torch.zeros(2, 3), torch.tensor([-1, 3]))


@pytest.mark.parametrize(
    "weights", [[0.0, 0.0, 0.0], [1.0, -0.1, 1.0], [1.0, float("nan"), 1.0], [1.0, torch.inf, 1.0]]
)
def test_weights_that_weigh_nothing_are_refused(weights):
    with pytest.raises(InvalidArgument, match="argument: weights"):
        fit_temperature(torch.eye(3), torch.arange(3), torch.tensor(weights))
