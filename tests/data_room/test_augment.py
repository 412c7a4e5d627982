# ruff: noqa: NPY002
"""Random transforms of libraries, as functions of (seed, epoch, image number)."""

import random

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image

from convsmith.data import AUGMENTATIONS, Loader, Preprocessing, from_arrays, load
from convsmith.data.augment import kept_random_states, keyed
from convsmith.errors import InvalidArgument
from tests.data_room.pictures_on_disk import folder

FULL = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "color_jitter": 0.4, "vflip": 0.5}


def picture(size=(20, 24), seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8))


def test_names():
    assert AUGMENTATIONS.names() == ["digits", "flip-crop", "imagenet", "none"]
    with pytest.raises(InvalidArgument, match="did you mean 'flip-crop'"):
        AUGMENTATIONS["flipcrop"]


def test_imagenet_is_timms_transform_under_the_same_seeds():
    plain = Preprocessing((3, 16, 16))
    ours = AUGMENTATIONS["imagenet"](plain, **FULL)
    theirs = timm.data.create_transform(**plain.to_json(), is_training=True, **FULL)
    image = picture()
    for seed in range(5):
        found = []
        for transform in (ours, theirs):
            random.seed(seed)
            np.random.seed(seed)
            torch.manual_seed(seed)
            found.append(transform(image))
        assert torch.equal(*found)


@pytest.mark.parametrize("settings", [FULL, {"auto_augment": "augmix-m5-w3"}, {"auto_augment": "original"}, {}])
def test_a_picture_changes_with_the_key_alone(settings):
    transform = Preprocessing((3, 16, 16)).train_transform(**settings)
    image = picture()
    first = keyed(transform, image, 123)
    random.seed(5), np.random.seed(6), torch.manual_seed(7)
    assert torch.equal(keyed(transform, image, 123), first)
    others = [keyed(transform, image, word) for word in (223, 133, 2**63 + 124)]
    assert not any(torch.equal(other, first) for other in others)


def test_the_global_random_states_are_put_back():
    draw = lambda: (random.random(), float(np.random.rand()), float(torch.rand(())))  # noqa: E731
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = draw()
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with kept_random_states():
        keyed(Preprocessing((3, 8, 8)).train_transform(**FULL), picture(), 0)
    assert draw() == expected


def test_any_number_of_workers_and_batches_sees_the_same(tmp_path):
    data = load(f"imagefolder:{folder(tmp_path)}", size=8, augment="imagenet", **FULL)
    seen = []
    for workers, batch in ((0, 7), (0, 2), (2, 3)):
        batches = list(Loader(data.train, batch, seed=3, shuffle=True, augment=True, workers=workers).epoch(4))
        seen.append(torch.cat([b.images for b in batches]))
    assert torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0], seen[2])


@pytest.mark.parametrize("name", ["digits", "flip-crop", "imagenet"])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_memory_are_changed_too(name, channels):
    images = torch.rand(6, channels, 9, 7)
    for values in (images, (images * 255).byte()):
        split = from_arrays(values, [0, 1] * 3).with_augment(name)
        got = split.fetch(range(6), key=(0, 1)).images
        assert got.shape == images.shape
        assert not torch.equal(got, split.fetch(range(6)).images)


def test_flip_crop_is_a_window_of_the_padded_image():
    image = torch.rand(1, 1, 6, 5)
    split = from_arrays(image, normalised=True).with_augment("flip-crop")
    padded = torch.nn.functional.pad(image[0], (4, 4, 4, 4))
    windows = [padded[:, t : t + 6, left : left + 5] for t in range(9) for left in range(9)]
    for epoch in range(20):
        got = split.fetch([0], key=(0, epoch)).images[0]
        assert any(torch.equal(got, w) or torch.equal(got, w.flip(-1)) for w in windows)


def test_digits_moves_a_disc_by_no_more_than_it_says():
    y, x = torch.meshgrid(torch.arange(25) - 12, torch.arange(25) - 12, indexing="ij")
    split = from_arrays((torch.hypot(x.float(), y.float()) < 6).float()[None], normalised=True).with_augment("digits")
    areas = []
    for epoch in range(40):
        got = split.fetch([0], key=(0, epoch)).images[0, 0]
        areas.append(float(got.sum()))
        centre = [float((got * axis).sum() / got.sum()) for axis in (x, y)]
        assert max(map(abs, centre)) <= 0.06 * 25 + 0.6
    whole = float(split.pixels([0]).sum())
    assert 0.75 * whole < min(areas) < 0.95 * whole
    assert 1.05 * whole < max(areas) < 1.27 * whole


def test_settings_that_do_not_fit_are_refused_when_they_are_given():
    split = from_arrays(torch.rand(2, 3, 8, 8), [0, 1])
    for name, settings, rule in (
        ("digits", {"re_prob": 0.5}, "has no settings"),
        ("imagenet", {"reprob": 0.5}, "re_prob"),
        ("imagenet", {"auto_augment": "bogus"}, "timm makes no training transform"),
        ("none", {"hflip": 0.5}, "has no settings"),
    ):
        with pytest.raises(InvalidArgument, match=rule):
            split.with_augment(name, **settings)
