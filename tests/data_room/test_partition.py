"""Division: every image once, copies together, shares by class, official parts kept."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from convsmith.data.partition import LEFT_OUT, TEST, TRAIN, VALIDATION, copies, official_parts, partition


def test_copies_share_the_number_of_the_first():
    assert copies([b"a", b"b", b"a", b"c", b"b"]).tolist() == [0, 1, 0, 3, 1]


@st.composite
def sets(draw):
    count = draw(st.integers(1, 80))
    kinds = draw(st.integers(1, count))
    marks = draw(st.lists(st.integers(0, kinds - 1), min_size=count, max_size=count))
    labels = draw(st.lists(st.integers(-1, 3), min_size=count, max_size=count))
    return torch.tensor(labels), copies(marks)


@given(sets(), st.integers(0, 5))
def test_copies_are_never_apart_and_every_class_has_training_images(held, seed):
    labels, groups = held
    part = partition(labels, groups, torch.full_like(labels, TRAIN), seed)
    assert bool(((part >= TRAIN) & (part <= TEST)).all())
    for group in groups.unique().tolist():
        assert len(part[groups == group].unique()) == 1
    heads = labels[groups]
    for label in heads.unique().tolist():
        assert bool((part[heads == label] == TRAIN).any())


@given(sets(), st.data())
def test_official_parts_stay_and_their_copies_leave_training(held, data):
    labels, groups = held
    count = len(labels)
    official = torch.tensor(data.draw(st.lists(st.integers(0, 2), min_size=count, max_size=count)))
    part = partition(labels, groups, official, 0)
    assert torch.equal(part[official == TEST], official[official == TEST])
    for group in groups.unique().tolist():
        assert len({p for p in part[groups == group].tolist() if p != LEFT_OUT}) == 1
    left = part == LEFT_OUT
    for n in left.nonzero()[:, 0].tolist():
        assert int(official[groups == groups[n]].max()) > int(official[n])
    if bool((official == VALIDATION).any()) and bool((official == TEST).any()):
        assert bool((part[~left] == official[~left]).all())


def test_shares_are_kept_class_by_class():
    labels = torch.arange(5).repeat_interleave(torch.tensor([100, 50, 20, 10, 4]))
    groups = torch.arange(len(labels))
    part = partition(labels, groups, torch.full_like(labels, TRAIN), 0)
    table = [[int(((labels == c) & (part == p)).sum()) for p in (TRAIN, VALIDATION, TEST)] for c in range(5)]
    assert table == [[70, 10, 20], [35, 5, 10], [14, 2, 4], [7, 1, 2], [2, 1, 1]]


def test_with_an_official_test_set_a_tenth_becomes_validation():
    labels = torch.zeros(120, dtype=torch.int64)
    official = torch.tensor([TRAIN] * 100 + [TEST] * 20)
    part = partition(labels, torch.arange(120), official, 0)
    assert [int((part == p).sum()) for p in (TRAIN, VALIDATION, TEST)] == [90, 10, 20]


def test_tiny_classes():
    for count, expected in [(1, [1, 0, 0]), (2, [1, 0, 1]), (3, [1, 1, 1])]:
        labels = torch.zeros(count, dtype=torch.int64)
        part = partition(labels, torch.arange(count), torch.full_like(labels, TRAIN), 0)
        assert [int((part == p).sum()) for p in (TRAIN, VALIDATION, TEST)] == expected


def test_the_seed_decides_and_only_the_seed():
    labels = torch.arange(200) % 4
    groups = torch.arange(200)
    first, again, other = (partition(labels, groups, torch.full_like(labels, TRAIN), s) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_names_of_parts():
    assert official_parts(["train", "test"]) == {TRAIN: "train", TEST: "test"}
    assert official_parts(["Train", "val"]) == {TRAIN: "Train", TEST: "val"}
    assert official_parts(["train", "valid", "test", "extra"]) == {TRAIN: "train", VALIDATION: "valid", TEST: "test"}
    assert official_parts(["cats", "dogs"]) == {}
    assert official_parts(["train"]) == {TRAIN: "train"}
