"""One rule for ``--set KEY=VALUE`` of every pillar: names and types come from the method's dataclass."""

from dataclasses import dataclass, field

import pytest

from convsmith.cli.shell.method_settings import method_settings
from convsmith.errors import InvalidArgument
from convsmith.registry import check_settings, setting_types


@dataclass(frozen=True)
class Weights:
    power: float = 1.0


@dataclass(frozen=True)
class Small:
    """Settings of a method."""

    rank: int | float | str | None = None
    variant: str = "auto"
    skip: tuple[str, ...] = ()
    hidden: tuple[int, ...] = (64,)
    lr: float = 0.1
    weights: Weights = field(default_factory=Weights)


@dataclass(frozen=True)
class Other:
    rank: int = 1
    bits: int = 8


def read(*words, **more):
    return method_settings(words, more or {"small": Small})


@pytest.mark.parametrize(
    ("word", "name", "value"),
    [
        ("rank=4", "rank", 4),
        ("rank=0.5", "rank", 0.5),
        ("rank=full", "rank", "full"),
        ("rank=null", "rank", None),
        ("variant=on", "variant", "on"),
        ("variant=12", "variant", "12"),
        ("skip=a,b", "skip", ("a", "b")),
        ("skip=a", "skip", ("a",)),
        ("hidden=[8, 16]", "hidden", (8, 16)),
        ("hidden=8", "hidden", (8,)),
        ("hidden=8,16", "hidden", (8, 16)),
        ("lr=1e-3", "lr", 1e-3),
        ("power=2", "power", 2.0),
    ],
)
def test_a_value_takes_the_type_of_its_field(word, name, value):
    assert read(word) == {"small": {name: value}}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["rnk=4"], "did you mean 'rank'"),
        (["weights=1"], "no such setting"),
        (["lr=fast"], "lr must be a number"),
        (["hidden=a"], "each a whole number"),
        (["lr"], "NAME=VALUE"),
        (["lr=1", "lr=2"], "twice"),
        (["lr=[1"], "a value is YAML"),
        (["other.lr=1"], "no such method is used here"),
    ],
)
def test_a_bad_setting_is_one_clear_error(words, said):
    with pytest.raises(InvalidArgument, match=said.replace("(", r"\(")):
        read(*words)


def test_in_a_chain_every_method_takes_what_it_knows_and_one_can_be_named():
    chain = {"small": Small, "int-8": Other}
    assert read("rank=4", "bits=4", **chain) == {"small": {"rank": 4}, "int-8": {"rank": 4, "bits": 4}}
    assert read("int-8.rank=2", **chain) == {"small": {}, "int-8": {"rank": 2}}
    with pytest.raises(InvalidArgument, match="small and int-8 has no such setting"):
        read("width=4", **chain)


def test_a_setting_with_a_flag_of_its_own_is_refused_with_the_flag():
    with pytest.raises(InvalidArgument, match="--lr X"):
        method_settings(["lr=1"], {"small": Small}, reserved={"lr": "--lr X"})


def test_a_function_or_class_gives_its_keywords():
    def attack(images, epsilon: float = 0.1, *, steps: int = 3):
        """Move."""

    assert setting_types(attack) == {"epsilon": float, "steps": int}
    with pytest.raises(InvalidArgument, match="did you mean 'steps'"):
        check_settings("attack", ["step"], setting_types(attack))


def test_every_registered_method_declares_its_settings():
    from convsmith import adaptation, compression, pooling

    for name in compression.METHODS.names():
        assert setting_types(compression.METHODS[name]), name
    for entry in adaptation.METHODS:
        assert setting_types(entry.traits["settings"]()), entry.name
    for name in pooling.available():
        setting_types(pooling.POOLINGS[name])
