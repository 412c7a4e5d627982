"""What the caller has becomes two splits: classes by name, options that can be followed, or one clear error."""

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.adaptation import InputOptions
from convsmith.adaptation.inputs import resolve
from convsmith.errors import InvalidArgument
from tests.adaptation.worlds import SHARED, world


@pytest.fixture(scope="module")
def sides():
    return world(n=100, m=60, shift=0.35)


def images(n):
    return np.random.default_rng(0).random((n, 1, 8, 8), dtype=np.float32)


GOOD = (images(40), np.arange(40) % 5)


class Listed(list, torch.utils.data.Dataset):
    """A dataset of these items."""


@pytest.mark.parametrize(
    ("source", "target", "options", "rule"),
    [
        (GOOD, images(20), {"size": 16}, "read already keep theirs"),
        (GOOD, images(20), {"channels": 3}, "read already keep theirs"),
        ("digits", images(20), {"crop": (None, 4), "size": 8}, "read already keep theirs"),
        (Listed([(Image.new("L", (8, 8)), 1)] * 9), images(20), {}, "tensors of one size"),
        (Listed([(torch.rand(1, 8, 8 + n), n) for n in (0, 1)]), images(20), {}, "tensors of one size"),
        (Listed([(torch.rand(1, 8, 8), torch.eye(5)[n]) for n in (0, 1)]), images(20), {}, "class number"),
    ],
)
def test_bad_input_is_one_clear_error(source, target, options, rule):
    with pytest.raises(InvalidArgument, match=rule):
        resolve(source, target, InputOptions(**options))


def test_labels_of_a_target_in_memory_mean_its_classes_by_name(sides):
    source, target = sides
    renamed = target.with_labels(2 - target.labels, ("c2", "c1", "c0"))
    assert torch.equal(resolve(source, renamed).target_labels, target.labels)
    cut = resolve(source, renamed, InputOptions(target_classes="c0"))
    assert torch.equal(cut.target.index, (target.labels == 0).nonzero()[:, 0])
    with pytest.raises(InvalidArgument, match="every class of the target"):
        resolve(source, target.with_labels(target.labels, ("c0", "c1", "wolf")))
    counted = target.with_labels(target.labels, ("0", "1", "2"))
    assert torch.equal(resolve(source, counted).target_labels, target.labels)


def test_a_spec_beside_images_in_memory_is_cut_as_asked():
    whole, cut = (
        resolve("digits", images(20), InputOptions(size=8, crop=(crop, None))).source.pixels([0]) for crop in (None, 6)
    )
    assert not torch.equal(whole, cut)


def test_shared_classes_are_known_only_where_labels_are(sides):
    assert resolve(*sides).shared == SHARED
    assert resolve(sides[0], sides[1].without_labels()).shared == ()
