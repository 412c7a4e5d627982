"""Paired domains: one size, one numbering, a target with fewer classes."""

import pytest
import torch
from torch.testing import assert_close

from convsmith.data import DomainLoader, Loader, load, pair
from convsmith.errors import InvalidArgument
from tests.data_room.pictures_on_disk import folder, picture


def test_the_digits_pair():
    both = pair("digits", "mnist-5k", target_classes="0-4", size=16, crop=(None, 20))
    assert both.shared == (0, 1, 2, 3, 4)
    assert both.source.description.size == both.target.description.size == (16, 16)
    assert both.source.classes == both.target.classes
    assert set(both.source.train.labels.tolist()) == set(range(10))
    for split in both.target.splits.values():
        assert set(split.labels.tolist()) == {0, 1, 2, 3, 4}
    assert sum(both.target.description.counts.values()) == 2500
    assert both.target.description.counts["train"] == len(both.target.train)
    expected = load("mnist-5k", size=16, crop=20)
    number = int(both.target.test.index[7])
    position = expected.test.index.tolist().index(number)
    assert torch.equal(both.target.test.pixels([7]), expected.test.pixels([position]))
    assert both.target.test.labels[7] == expected.test.labels[position]


def test_default_size_is_the_smaller_and_channels_the_source_s():
    both = pair("mnist-5k", "digits")
    assert both.source.description.size == both.target.description.size == (8, 8)
    assert both.shared == tuple(range(10))
    colour = pair(load("digits", channels=3), "mnist-5k")
    assert colour.target.description.channels == 3
    assert colour.target.train.pixels([0]).shape == (1, 3, 8, 8)


def test_normalisation_by_the_source_or_by_each_its_own():
    by_source, own = pair("digits", "mnist-5k"), pair("digits", "mnist-5k", normalise="own")
    assert by_source.target.description.mean == by_source.source.description.mean
    assert by_source.target.description.std == by_source.source.description.std
    assert own.target.description.mean != own.source.description.mean
    # the fetch follows the description
    pixels = by_source.target.test.pixels([0, 1])
    description = by_source.source.description
    expected = (pixels - description.mean[0]) / description.std[0]
    assert_close(by_source.target.test.fetch([0, 1]).images, expected, atol=1e-6, rtol=0)
    whole = own.target.train.fetch(slice(None)).images
    assert float(whole.mean()) == pytest.approx(0, abs=1e-3)
    assert float(whole.std()) == pytest.approx(1, abs=1e-3)


def test_target_labels_count_the_source_s_classes(tmp_path):
    source = folder(tmp_path / "source", classes=("ant", "bee", "cat", "dog"))
    target = folder(tmp_path / "target", classes=("cat", "bee"))
    both = pair(f"imagefolder:{source}", f"imagefolder:{target}")
    assert both.shared == (1, 2)
    paths = sorted(target.rglob("*.png"))
    for split in both.target.splits.values():
        names = [both.source.classes[n] for n in split.labels.tolist()]
        assert names == [paths[n].parent.name for n in split.index.tolist()]
    only = pair(f"imagefolder:{source}", f"imagefolder:{target}", target_classes="cat")
    assert only.shared == (2,)
    assert set(only.target.train.labels.tolist()) == {2}


def test_classes_that_one_side_lacks_are_named(tmp_path):
    source = folder(tmp_path / "source", classes=("ant", "bee"))
    target = folder(tmp_path / "target", classes=("bee", "yak"))
    specs = (f"imagefolder:{source}", f"imagefolder:{target}")
    with pytest.raises(InvalidArgument, match=r"the source lacks yak"):
        pair(*specs)
    with pytest.raises(InvalidArgument, match=r"target lacks a class[\s\S]*ant"):
        pair(*specs, target_classes="ant,bee")
    with pytest.raises(InvalidArgument, match="no such class"):
        pair(*specs, target_classes="yak")
    assert pair(*specs, target_classes="bee").shared == (1,)


def test_a_target_without_classes_keeps_all_images(tmp_path):
    for n in range(10):
        picture(tmp_path / f"{n}.png", size=(8, 8), mode="L", seed=n)
    both = pair("digits", f"images:{tmp_path}")
    assert both.shared == ()
    assert both.target.classes == both.source.classes
    assert sum(map(len, both.target.splits.values())) == 10
    assert set(both.target.train.labels.tolist()) == {-1}


def test_data_already_loaded_must_fit():
    with pytest.raises(InvalidArgument, match="common size"):
        pair(load("mnist-5k"), "digits", size=8)
    with pytest.raises(InvalidArgument, match="crop needs a spec"):
        pair(load("mnist-5k"), "digits", crop=(20, None))
    with pytest.raises(InvalidArgument, match="normalise"):
        pair("digits", "mnist-5k", normalise="target")


def test_a_loader_of_the_pair_hides_the_target_s_labels_and_training_ends_where_it_should():
    both = pair("digits", "mnist-5k", target_classes="first-3")
    loader = DomainLoader(
        *(
            Loader(side.train.with_augment("digits"), 64, shuffle=True, augment=True, drop_last=True)
            for side in (both.source, both.target)
        )
    )
    steps = list(loader.epoch(0))
    assert len(steps) == max(1259 // 64, 1050 // 64)
    assert all(set(step.target.labels.tolist()) == {-1} for step in steps)
    assert all(len(step.source) == len(step.target) == 64 for step in steps)
