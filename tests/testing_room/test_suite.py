"""A suite tells every failure at once, and no declared exception outlives its reason."""

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.testing import Nonconforming
from convsmith.testing.suite import require_refusal, require_that, run_checks, untouched


def is_wet():
    require_that(False, "water is wet", "dust")


def fine():
    pass


def divides():
    return 1 / 0


def test_every_broken_rule_is_told():
    with pytest.raises(
        Nonconforming, match=r"(?s)x breaks 2 of 3 rules.*is wet: .*water is wet; found dust.*divides: ZeroDiv"
    ):
        run_checks("x", [is_wet, fine, divides])


def test_exceptions_are_declared_by_name_and_only_where_needed():
    found = run_checks("x", [is_wet, fine], {"is wet": "it is a desert"})
    assert (found.passed, found.excepted) == (("fine",), {"is wet": "it is a desert"})
    with pytest.raises(Nonconforming, match="passes, though an exception is declared"):
        run_checks("x", [fine], {"fine": "was broken once"})
    with pytest.raises(InvalidArgument, match="did you mean 'divides'"):
        run_checks("x", [divides], {"divdes": ""})


def test_refusals_must_name_the_argument():
    def refuse():
        raise InvalidArgument("no", argument="size")

    require_refusal(refuse, "size")
    with pytest.raises(AssertionError, match="names 'size'"):
        require_refusal(refuse, "colour")
    with pytest.raises(AssertionError, match="was taken"):
        require_refusal(fine, "size")


def test_changes_and_draws_are_seen():
    x = torch.zeros(2)
    with pytest.raises(AssertionError, match="argument 0 changed"), untouched(x):
        x += 1
    with pytest.raises(AssertionError, match="torch's global generator"), untouched(x):
        torch.rand(1)
