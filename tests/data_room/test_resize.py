"""Sizes and channels: exact averages, linear interpolation, no distortion."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.testing import assert_close

from convsmith.data.resize import checked_size, fit, ink_window, resize, to_channels
from convsmith.errors import InvalidArgument

sides = st.integers(1, 20)


def naive_area(row, after):
    """Average of the covered stretch of a row of unit cells, by sub-sampling each cell ``after`` times (exact)."""
    fine = [v for v in row for _ in range(after)]
    width = len(row)
    return [sum(fine[n * width : (n + 1) * width]) / width for n in range(after)]


@given(sides, sides)
def test_shrinking_a_row_averages_what_it_covers(before, after):
    after = min(before, after)
    row = torch.rand(before, generator=torch.Generator().manual_seed(before))
    got = resize(row[None, None, None], (1, after))[0, 0, 0]
    assert_close(got, torch.tensor(naive_area(row.tolist(), after)), atol=1e-6, rtol=0)


@given(sides, sides, sides, sides)
def test_a_constant_image_stays_constant(h, w, height, width):
    got = resize(torch.full((1, 2, h, w), 0.3), (height, width))
    assert got.shape == (1, 2, height, width)
    assert_close(got, torch.full_like(got, 0.3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("before", "after"), [(28, 14), (16, 8), (12, 4)])
def test_whole_ratios_equal_average_pooling(before, after):
    images = torch.rand(2, 3, before, before)
    assert_close(resize(images, (after, after)), F.avg_pool2d(images, before // after), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("before", "after"), [(8, 16), (8, 11), (5, 32)])
def test_growing_is_linear_interpolation(before, after):
    images = torch.rand(2, 1, before, before)
    expected = F.interpolate(images, (after, after), mode="bilinear", align_corners=False)
    assert_close(resize(images, (after, after)), expected, atol=1e-6, rtol=0)


@given(st.integers(2, 20), st.integers(1, 20))
def test_shrinking_keeps_the_mean(before, after):
    after = min(before, after)
    image = torch.rand(1, 1, before, before)
    assert_close(resize(image, (after, after)).mean(), image.mean(), atol=1e-6, rtol=0)


def test_fit_cuts_the_centre_and_does_not_distort():
    image = torch.zeros(1, 1, 4, 12)
    image[..., 4:8] = 1
    assert torch.equal(fit(image, (4, 4)), torch.ones(1, 1, 4, 4))
    assert torch.equal(fit(image, (2, 2)), torch.ones(1, 1, 2, 2))
    for size in [(3, 5), (9, 2), (1, 1)]:
        assert fit(torch.rand(1, 3, 7, 11), size).shape[2:] == size


def test_channels():
    grey, colour = torch.rand(2, 1, 3, 3), torch.rand(2, 3, 3, 3)
    assert torch.equal(to_channels(grey, 3), grey.repeat(1, 3, 1, 1))
    red, green, blue = colour.unbind(1)
    assert_close(to_channels(colour, 1)[:, 0], 0.299 * red + 0.587 * green + 0.114 * blue, atol=1e-6, rtol=0)
    assert_close(to_channels(to_channels(grey, 3), 1), grey, atol=1e-6, rtol=0)
    assert torch.equal(to_channels(torch.cat([colour, grey], 1), 3), colour)
    assert torch.equal(to_channels(torch.cat([grey, grey * 0], 1), 1), grey)
    with pytest.raises(InvalidArgument, match="1 and 3 channels"):
        to_channels(torch.rand(1, 5, 2, 2), 3)


def test_the_ink_window_holds_a_box_wherever_it_lies():
    images = torch.zeros(3, 1, 12, 10)
    images[0, 0, 2:6, 5:9] = 1
    images[1, 0, 8:12, 0:4] = 1
    got = ink_window(images, 4)
    assert torch.equal(got[:2], torch.ones(2, 1, 4, 4))
    assert torch.equal(got[2], torch.zeros(1, 4, 4))
    full = torch.rand(1, 1, 8, 8) + 0.1
    assert torch.equal(ink_window(full, 4), full[..., 2:6, 2:6])
    with pytest.raises(InvalidArgument, match="fit in 12 x 10"):
        ink_window(images, 11)


@pytest.mark.parametrize("size", [0, -3, (8, 0), (8,), (8, 8, 8), (8.0, 8), "8"])
def test_bad_sizes(size):
    with pytest.raises(InvalidArgument, match="size"):
        checked_size(size)
