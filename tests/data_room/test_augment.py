"""Each augmentation against what it says it does."""

import pytest
import torch
from torch.testing import assert_close

from convsmith.data.augment import AUGMENTATIONS, crop_box, draw
from convsmith.data.resize import resize
from convsmith.errors import InvalidArgument

STILL = 0.5  # the middle of every draw: no shift, no turn, no scale


def test_names():
    assert AUGMENTATIONS.names() == ["digits", "flip-crop", "imagenet", "none"]
    with pytest.raises(InvalidArgument, match="did you mean 'flip-crop'"):
        AUGMENTATIONS["flipcrop"]


@pytest.mark.parametrize("name", ["digits", "flip-crop", "imagenet", "none"])
@pytest.mark.parametrize("shape", [(5, 3, 9, 7), (0, 1, 8, 8), (1, 1, 1, 1)])
def test_shape_range_and_independence_of_the_batch(name, shape):
    images = torch.rand(shape)
    drawn = draw(name, 0, 3, torch.arange(shape[0]))
    got = AUGMENTATIONS[name](images, drawn, shape[2:])
    assert got.shape == images.shape
    assert bool(((got >= 0) & (got <= 1 + 1e-6)).all())
    one = [AUGMENTATIONS[name](images[n : n + 1], drawn[n : n + 1], shape[2:])[0] for n in range(shape[0])]
    assert not one or torch.equal(torch.stack(one), got)


def test_none_returns_the_images_themselves():
    images = torch.rand(2, 1, 4, 4)
    assert torch.equal(AUGMENTATIONS["none"](images, torch.zeros(2, 0), (4, 4)), images)


def test_digits_at_rest_changes_nothing():
    images = torch.rand(3, 1, 8, 6)
    got = AUGMENTATIONS["digits"](images, torch.full((3, 4), STILL, dtype=torch.float64), (8, 6))
    assert_close(got, images, atol=1e-5, rtol=0)


def test_digits_shifts_by_what_is_drawn():
    images = torch.rand(1, 1, 25, 25)
    drawn = torch.tensor([[1.0, STILL, STILL, STILL]], dtype=torch.float64)
    # the furthest shift is 6 % of 25 pixels = 1.5 pixels: the result lies halfway between two columns
    got = AUGMENTATIONS["digits"](images, drawn, (25, 25))
    expected = (images[..., 1:-1] + images[..., 2:]) / 2
    assert_close(got[..., :-2], expected, atol=1e-5, rtol=0)
    assert_close(got[..., -1], torch.zeros(1, 1, 25), atol=1e-5, rtol=0)


def test_digits_turns_without_distortion_on_a_picture_that_is_not_square():
    h, w = 24, 40
    y, x = torch.meshgrid(torch.arange(h) - (h - 1) / 2, torch.arange(w) - (w - 1) / 2, indexing="ij")
    disc = (torch.hypot(x, y) < 8).float()[None, None]
    drawn = torch.tensor([[STILL, STILL, 1.0, STILL]], dtype=torch.float64)
    got = AUGMENTATIONS["digits"](disc, drawn, (h, w))
    far = (torch.hypot(x, y) - 8).abs() > 1.5
    assert_close(got[0, 0][far], disc[0, 0][far], atol=1e-4, rtol=0)


def test_digits_scales_up_and_down_by_a_tenth():
    square = torch.zeros(1, 1, 40, 40)
    square[..., 10:30, 10:30] = 1
    for value, side in ((1.0, 22.0), (0.0, 18.0)):
        drawn = torch.tensor([[STILL, STILL, STILL, value]], dtype=torch.float64)
        area = float(AUGMENTATIONS["digits"](square, drawn, (40, 40)).sum())
        assert area == pytest.approx(side**2, rel=0.02)


def test_flip_crop_is_a_window_of_the_padded_image():
    image = torch.rand(1, 2, 6, 5)
    padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
    for top in range(9):
        drawn = torch.tensor([[(top + 0.5) / 9, 0.99, 0.9]], dtype=torch.float64)
        got = AUGMENTATIONS["flip-crop"](image, drawn, (6, 5))
        assert torch.equal(got, padded[..., top : top + 6, 8:13])
    middle = torch.tensor([[0.5, 0.5, 0.1]], dtype=torch.float64)
    assert torch.equal(AUGMENTATIONS["flip-crop"](image, middle, (6, 5)), image.flip(-1))


def test_imagenet_is_the_box_it_drew():
    image = torch.rand(1, 3, 30, 50)
    drawn = draw("imagenet", 0, 0, torch.tensor([4]))
    top, left, height, width = crop_box((30, 50), drawn[0].tolist())
    expected = resize(image[..., top : top + height, left : left + width], (12, 12))
    expected = expected.flip(-1) if drawn[0, -1] < 0.5 else expected
    assert torch.equal(AUGMENTATIONS["imagenet"](image, drawn, (12, 12)), expected)


def test_crop_boxes_lie_inside_and_keep_to_area_and_aspect():
    drawn = draw("imagenet", 0, 0, torch.arange(2000))
    boxes = [crop_box((300, 400), row) for row in drawn.tolist()]
    assert None not in boxes
    for top, left, height, width in boxes:
        assert 0 <= top <= 300 - height
        assert 0 <= left <= 400 - width
        assert 0.08 * 0.97 <= height * width / 120000 <= 1.03
        assert 0.75 * 0.97 <= width / height <= 4 / 3 * 1.03
    assert max(h * w for _, _, h, w in boxes) > 0.9 * 120000


def test_a_picture_too_narrow_for_any_box_is_cut_at_its_centre():
    image = torch.rand(1, 1, 2, 400)
    drawn = draw("imagenet", 0, 0, torch.tensor([0]))
    assert crop_box((2, 400), drawn[0].tolist()) is None
    got = AUGMENTATIONS["imagenet"](image, drawn, (2, 2))
    centre = image[..., 199:201]
    assert torch.equal(got, centre) or torch.equal(got, centre.flip(-1))
