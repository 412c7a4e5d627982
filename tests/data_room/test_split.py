"""A split: fetching, choosing, normalising."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from convsmith.data import from_arrays
from convsmith.errors import InvalidArgument


@pytest.fixture
def split():
    images = (torch.arange(6 * 2 * 3 * 4).reshape(6, 2, 3, 4) % 251).to(torch.uint8)
    return from_arrays(images, [0, 1, 2, 0, 1, 2], classes=("a", "b", "c"))


def test_fetch_normalises_pixels_by_the_description(split):
    batch, pixels = split.fetch([4, 1]), split.pixels([4, 1])
    assert_close(pixels, split.images.images[[4, 1]].float() / 255, atol=0, rtol=0)
    mean, std = (torch.tensor(v)[:, None, None] for v in (split.description.mean, split.description.std))
    assert_close(batch.images, (pixels - mean) / std, atol=1e-6, rtol=0)
    assert_close(batch.images * std + mean, pixels, atol=1e-6, rtol=0)
    assert batch.labels.tolist() == [1, 1]
    assert batch.index.tolist() == [4, 1]
    assert batch.images.dtype == torch.float32
    assert len(batch) == 2


def test_the_description_holds_mean_and_deviation_of_all_pixels(split):
    pixels = split.pixels(slice(None)).double()
    assert_close(torch.tensor(split.description.mean), pixels.mean((0, 2, 3)).float(), atol=1e-6, rtol=0)
    assert_close(torch.tensor(split.description.std), pixels.std((0, 2, 3), correction=0).float(), atol=1e-6, rtol=0)
    whole = split.fetch(range(6)).images.double()
    assert_close(whole.mean((0, 2, 3)), torch.zeros(2, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "positions",
    [
        [1, 3],
        torch.tensor([1, 3]),
        np.array([1, 3]),
        range(1, 5, 2),
        slice(1, 5, 2),
        torch.tensor([0, 1, 0, 1, 0, 0]) > 0,
    ],
)
def test_every_way_to_name_positions(split, positions):
    assert split.subset(positions).index.tolist() == [1, 3]
    assert split.fetch(positions).index.tolist() == [1, 3]


def test_an_empty_choice_gives_an_empty_batch(split):
    assert split.fetch([]).images.shape == (0, 2, 3, 4)
    assert len(split.subset([])) == 0


@pytest.mark.parametrize("positions", [[6], [-1], [[0, 1]], [0.5], torch.tensor([True, False])])
def test_bad_positions(split, positions):
    with pytest.raises(InvalidArgument):
        split.fetch(positions)


def test_subsets_of_subsets_keep_image_numbers(split):
    inner = split.subset([5, 4, 2]).subset([2, 0])
    assert inner.index.tolist() == [2, 5]
    assert inner.labels.tolist() == [2, 2]
    assert torch.equal(inner.pixels([1]), split.pixels([5]))


def test_classes_are_chosen_without_renumbering(split):
    chosen = split.of_classes([2, 0])
    assert chosen.labels.tolist() == [0, 2, 0, 2]
    assert chosen.classes == ("a", "b", "c")
    for bad in ([3], [-1]):
        with pytest.raises(InvalidArgument, match="no such class"):
            split.of_classes(bad)


def test_labels_normalisation_and_augmentation_are_replaced_in_copies(split):
    assert split.without_labels().labels.tolist() == [-1] * 6
    renamed = split.with_labels(split.labels + 1, ("z", "a", "b", "c"))
    assert renamed.classes == ("z", "a", "b", "c")
    assert renamed.fetch([0]).labels.tolist() == [1]
    plain = split.with_normalisation((0.0, 0.0), (1.0, 1.0))
    assert torch.equal(plain.fetch([3]).images, split.pixels([3]))
    assert split.with_augment("digits").augment == "digits"
    assert split.augment == "none"
    assert split.classes == ("a", "b", "c")
    with pytest.raises(InvalidArgument, match="one label per image"):
        split.with_labels(torch.zeros(2), ())
    with pytest.raises(InvalidArgument, match="no augmentation has this name"):
        split.with_augment("blur")
    for mean, std in [((0.0,), (1.0,)), ((0.0, 0.0), (1.0, 0.0))]:
        with pytest.raises(InvalidArgument, match="one mean and one positive std"):
            split.with_normalisation(mean, std)
