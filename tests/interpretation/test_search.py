"""Gamma by target: the asked sparsity is met as closely as the search allows, overlaps of starts are reported."""

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation import (
    find_routes,
    initialisation_overlap,
    jaccard,
    regularisation_path,
    routes_at_sparsity,
)


def test_bisection_meets_the_asked_share_better_than_one_gamma(digits):
    x = digits.test_x[:24]
    routes, gamma = routes_at_sparsity(digits.model, x, 0.15, rounds=7, steps=200)
    error = (routes.sparsity() - 0.15).abs()
    fixed = (find_routes(digits.model, x, steps=200).sparsity() - 0.15).abs()
    assert error.mean() < fixed.mean()
    assert error.median() < 0.04
    assert gamma.shape == (24,)
    assert gamma.unique().numel() > 5
    assert routes.kept.all()
    for row in (0, 7):
        again = find_routes(digits.model, x[row : row + 1], gamma=float(gamma[row]), steps=200)
        torch.testing.assert_close(again.sparsity()[0], routes.sparsity()[row], atol=0.03, rtol=0)


def test_a_path_of_gammas_lowers_the_sum_of_the_gates(digits):
    # at the lowest minima the sum of the gates falls with gamma, which weighs it; local ones keep this for large steps
    path = regularisation_path(digits.model, digits.test_x[:16], [0.003, 0.2, 1.0], steps=80)
    sums = [routes.vector().sum(1).mean().item() for routes in path]
    assert sums[2] < min(sums[:2])


def test_overlap_of_starts_is_reported_and_is_not_total(digits):
    overlap = initialisation_overlap(digits.model, digits.test_x[:12], steps=60)
    assert overlap.shape == (2, 12)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    assert overlap.mean() < 0.99


def test_jaccard_by_hand():
    a = torch.tensor([[True, True, False], [False, False, False], [True, False, False]])
    b = torch.tensor([[True, False, True], [False, False, False], [False, True, False]])
    torch.testing.assert_close(jaccard(a, b), torch.tensor([1 / 3, 1.0, 0.0]))


def test_bad_requests_are_refused(digits):
    with pytest.raises(InvalidArgument, match="share"):
        routes_at_sparsity(digits.model, digits.test_x[:2], 1.5)
    with pytest.raises(InvalidArgument, match="bisection"):
        routes_at_sparsity(digits.model, digits.test_x[:2], 0.5, low=1.0, high=0.1)


def test_settings_that_are_none_or_that_are_searched_are_refused_by_name(digits):
    x = digits.test_x[:2]
    for wrong in ({"stpes": 5}, {"gamma": 0.1}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            routes_at_sparsity(digits.model, x, 0.5, **wrong)
    assert initialisation_overlap(digits.model, x, seeds=(1,), steps=2, seed=3, init="uniform").shape == (1, 2)
