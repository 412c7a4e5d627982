import pytest

from convsmith.errors import ConvsmithError, InvalidArgument, MissingExtra, RunFailed, close_matches, require
from convsmith.registry import Registry


def test_an_error_names_asked_given_rule_and_mend():
    text = str(InvalidArgument("must be positive", argument="epochs", given=-1, hint="give 1 or more"))
    assert text.splitlines() == [
        "must be positive",
        "  argument: epochs",
        "  given:    -1",
        "  hint:     give 1 or more",
    ]


def test_kinds_and_exit_codes():
    assert issubclass(InvalidArgument, ValueError)
    assert issubclass(InvalidArgument, ConvsmithError)
    assert issubclass(MissingExtra, ImportError)
    assert InvalidArgument("x").exit_code == 2
    assert RunFailed("x").exit_code == 1


def test_close_matches_offers_the_near_names_else_all():
    assert "isqrt-cov" in close_matches("isqrt", ["isqrt-cov", "average"])
    assert close_matches("zzz", ["b", "a"]) == "known: a, b"


def test_require_names_the_pip_line():
    with pytest.raises(MissingExtra, match=r'pip install "convsmith\[attacks\]"'):
        require("no_such_package_at_all", "attacks")
    assert require("json", "attacks").__name__ == "json"


def test_registry_refuses_duplicates_and_offers_close_names():
    things = Registry("thing", "convsmith.cli.shell")

    @things.register("first", fast=True)
    def first():
        """Summary line."""

    assert things["first"] is first
    assert things.names() == ["first"]
    assert things.entry("first").summary == "Summary line."
    assert things.entry("first").traits == {"fast": True}
    assert "first" in things
    assert len(things) == 1
    with pytest.raises(InvalidArgument, match="registered twice"):
        things.register("first")(first)
    with pytest.raises(InvalidArgument, match="did you mean 'first'"):
        things["frist"]
