"""The detection table: nothing leaks between train and test, harmless changes are negatives, the null is one half."""

from dataclasses import replace

import pytest
import torch

from convsmith.errors import InvalidArgument
from convsmith.interpretation.protocol import Images, attacked, balanced, detection_table, harmless, rounded


def pictures(digits, split, rows):
    x, y = (digits.train_x, digits.train_y) if split == "train" else (digits.test_x, digits.test_y)
    first = 0 if split == "train" else 5000
    return Images(x[rows], y[rows], torch.arange(len(x))[rows] + first, (0.0,), (1.0,))


def test_the_table_has_every_attack_every_negative_and_the_null(digits):
    train, test = pictures(digits, "train", slice(0, 200)), pictures(digits, "test", slice(0, 60))
    rows = detection_table(
        digits.model,
        train,
        test,
        epsilon=40 / 255,
        per_class=(2,),
        features=("routes", "activations"),
        find={"mode": "paper", "steps": 10},
        trees=20,
    )
    assert len(rows) == 2 * 8
    by_name = {(r.features, r.attack): r for r in rows}
    assert by_name["routes", "ifgsm"].seen
    assert not by_name["routes", "fgsm"].seen
    assert by_name["routes", "noise"].harmless
    assert by_name["routes", "ifgsm"].flipped > by_name["routes", "noise"].flipped
    assert by_name["routes", "ifgsm"].report.auroc > 0.55
    null = by_name["routes", "none"].report
    assert null.auroc == 0.5


def test_shared_images_are_refused(digits):
    some = pictures(digits, "train", slice(0, 100))
    with pytest.raises(InvalidArgument, match="train images"):
        detection_table(digits.model, some, some, epsilon=0.1)
    with pytest.raises(InvalidArgument, match="attack"):
        detection_table(digits.model, some, pictures(digits, "test", slice(0, 9)), epsilon=0.1, seen="deepfool")
    for wrong, word in (
        ({"features": ["logit"]}, "logits"),
        ({"classifiers": ["forest"]}, "forest"),
        ({"find": {"stpes": 2}}, "steps"),
    ):
        with pytest.raises(InvalidArgument, match=word):
            detection_table(
                digits.model, some, pictures(digits, "test", slice(0, 9)), epsilon=0.1, per_class=(1,), **wrong
            )
    with pytest.raises(InvalidArgument, match="too few"):
        detection_table(digits.model, some, pictures(digits, "test", slice(0, 9)), epsilon=0.1, per_class=(90,))


@pytest.mark.parametrize("name", ["noise", "blur", "jpeg"])
def test_harmless_changes_stay_pictures(digits, name):
    test = pictures(digits, "test", slice(0, 10))
    changed = harmless(test, name, 24 / 255, seed=1)
    assert changed.min() >= 0
    assert changed.max() <= 1
    torch.testing.assert_close(changed * 255, (changed * 255).round(), atol=1e-4, rtol=0)
    assert not torch.equal(changed, rounded(test))
    kept = digits.model(changed).argmax(1) == digits.model(test.images).argmax(1)
    assert kept.float().mean() >= 0.7


def test_targets_are_never_the_own_class(digits):
    test = pictures(digits, "test", slice(0, 20))
    a = attacked(digits.model, test, "targeted ifgsm", 0.1, seed=0)
    b = attacked(digits.model, test, "targeted ifgsm", 0.1, seed=1)
    assert not torch.equal(a, b)


def test_the_images_of_a_table_need_not_have_the_networks_type(digits, tmp_path):
    train, test = pictures(digits, "train", slice(0, 40)), pictures(digits, "test", slice(0, 12))
    unknown = replace(train, labels=torch.full_like(train.labels, -1))
    settings = {"epsilon": 40 / 255, "per_class": (1,), "features": ("logits",), "unseen": ("fgsm",), "trees": 5}
    rows = detection_table(digits.model.double(), unknown, test, folder=tmp_path, **settings)
    assert [row.attack for row in rows] == ["ifgsm", "fgsm", "noise", "blur", "jpeg", "none"]
    attacks = attacked(digits.model, test, "fgsm", 0.1, seed=0)
    assert attacks.dtype == test.images.dtype


def test_a_target_is_another_class_where_all_images_are_of_the_first(digits):
    test = pictures(digits, "test", slice(0, 60))
    test = test.rows(test.labels == 0)
    moved = attacked(digits.model, test, "targeted ifgsm", 0.5, seed=0)
    assert (digits.model(moved).argmax(1) != 0).any()


def test_fewer_rows_of_a_class_are_among_more_also_where_another_class_has_few():
    labels = torch.tensor([0] * 3 + [1] * 20)
    for seed in range(5):
        one, five = (balanced(labels, count, seed, fewer=True) for count in (1, 5))
        assert set(one.tolist()) <= set(five.tolist())
