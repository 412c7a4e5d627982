"""Choosing classes in words."""

import pytest

from convsmith.data import chosen_classes
from convsmith.data.classes import matched_classes
from convsmith.errors import InvalidArgument

DIGITS = tuple("0123456789")
PETS = ("ant", "cat", "dog", "long-haired cat", "yak")


@pytest.mark.parametrize(
    ("spec", "names", "expected"),
    [
        (None, PETS, (0, 1, 2, 3, 4)),
        ("0-4", DIGITS, (0, 1, 2, 3, 4)),
        ("3,5,7", DIGITS, (3, 5, 7)),
        (" 7 , 3 ", DIGITS, (3, 7)),
        ("0-1,8-9", DIGITS, (0, 1, 8, 9)),
        ("first-5", DIGITS, (0, 1, 2, 3, 4)),
        ("first-1", PETS, (0,)),
        ("dog,ant", PETS, (0, 2)),
        ("long-haired cat", PETS, (3,)),
        ("cat-yak", PETS, (1, 2, 3, 4)),
        ("cat-long-haired cat", PETS, (1, 2, 3)),
        ("2", PETS, (2,)),
        (2, PETS, (2,)),
        ([0, "yak"], PETS, (0, 4)),
        ("1", ("2", "1"), (1,)),
        ("first-2", ("first-2", "b"), (0,)),
        ("a,b", ("a,b", "a", "b"), (0,)),
    ],
)
def test_what_words_mean(spec, names, expected):
    assert chosen_classes(spec, names) == expected


def test_random_draws_are_keyed():
    drawn = {chosen_classes(f"random-5@{seed}", DIGITS) for seed in range(20)}
    assert len(drawn) > 10
    assert all(len(set(d)) == 5 for d in drawn)
    assert chosen_classes("random-5@3", DIGITS) == chosen_classes("random-5@3", DIGITS)
    assert chosen_classes("random-5", DIGITS) == chosen_classes("random-5@0", DIGITS)
    assert chosen_classes("random-10@4", DIGITS) == tuple(range(10))


@pytest.mark.parametrize(
    ("spec", "rule"),
    [
        ("dgo", "did you mean 'dog'"),
        ("5", "from 0 to 4"),
        ("0-9", "from 0 to 4"),
        ("3-1", "runs upwards"),
        ("first-6", "there are 5 classes"),
        ("first-0", "there are 5 classes"),
        ("random-9@1", "there are 5 classes"),
        ("first-2@3", "no such class"),
        ("dog,2", "chosen once"),
        ("", "no such class"),
        ([], "at least one class"),
        ("-1", "no such class"),
        ([-1], "no such class"),
    ],
)
def test_bad_words(spec, rule):
    with pytest.raises(InvalidArgument, match=rule):
        chosen_classes(spec, PETS)


def test_a_word_for_two_classes_means_none_of_them():
    """Regression: a folder of cranes that fly counted as machines, the later class of that name."""
    from timm.data import ImageNetInfo

    info = ImageNetInfo("imagenet-1k")
    known = info.label_descriptions()
    assert matched_classes(("tench", "n03126707"), known) == (0, 517)
    with pytest.raises(InvalidArgument, match="crane"):
        matched_classes(("tench", "crane"), known)
    assert matched_classes(("b", "a", "a"), ("b", "a", "a")) == (0, 1, 2)


def test_a_line_of_a_class_map_that_says_nothing_is_refused(tmp_path):
    file = tmp_path / "map.txt"
    file.write_text("# ours, theirs\n\nkitty=cat\npup = dog\n")
    assert matched_classes(("kitty", "pup"), PETS, file) == (1, 2)
    file.write_text("kitty=cat\npup dog\n")
    with pytest.raises(InvalidArgument, match="'pup dog'"):
        matched_classes(("kitty", "dog"), PETS, file)
