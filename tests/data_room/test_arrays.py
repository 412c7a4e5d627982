"""Arrays given by the caller."""

import numpy as np
import pytest
import torch

from convsmith.data import Loader, from_arrays
from convsmith.errors import InvalidArgument


@pytest.mark.parametrize("shape", [(4, 5, 6), (4, 1, 5, 6), (4, 3, 5, 6)])
@pytest.mark.parametrize("kind", ["uint8", "float32", "float64", "torch"])
def test_shapes_and_types(shape, kind):
    values = np.random.default_rng(0).random(shape)
    given = {"uint8": (values * 255).astype("uint8"), "torch": torch.from_numpy(values)}.get(kind)
    given = values.astype(kind) if given is None else given
    split = from_arrays(given, np.array([0, 1, 0, 2]))
    assert split.pixels([0, 1]).shape == (2, shape[1] if len(shape) == 4 else 1, 5, 6)
    assert split.pixels([0]).dtype == torch.float32
    assert split.classes == ("0", "1", "2")
    assert split.description.size == (5, 6)
    assert np.allclose(split.pixels([3])[0].numpy().reshape(values[3].shape), values[3], atol=1 / 255)


def test_without_labels():
    split = from_arrays(torch.rand(3, 4, 4))
    assert split.labels.tolist() == [-1, -1, -1]
    assert split.classes == ()
    assert from_arrays(torch.rand(3, 4, 4), classes=["a", "b"]).classes == ("a", "b")


def test_normalised_values_pass_as_they_are():
    values = torch.randn(5, 2, 4, 4) * 10
    split = from_arrays(values, normalised=True, name="blobs")
    assert torch.equal(split.fetch(range(5)).images, values)
    assert split.description.mean == (0.0, 0.0)
    assert split.description.name == "blobs"


def test_constant_images_are_normalised_to_zero():
    split = from_arrays(torch.full((3, 1, 2, 2), 0.5))
    assert torch.equal(split.fetch([0, 1]).images, torch.zeros(2, 1, 2, 2))


def test_one_image_of_one_pixel():
    assert next(iter(Loader(from_arrays(torch.rand(1, 1, 1, 1), [0]), 4))).images.shape == (1, 1, 1, 1)


@pytest.mark.parametrize(
    ("X", "y", "arguments", "rule"),
    [
        (np.zeros((4, 5)), None, {}, r"\[N, H, W\]"),
        (np.zeros((0, 5, 5)), None, {}, "none of them 0"),
        (np.zeros((2, 0, 5)), None, {}, "none of them 0"),
        (np.zeros((2, 8, 8, 3)), None, {}, "channels come before"),
        (np.zeros((2, 5, 5), dtype="int64"), None, {}, "uint8 or floats"),
        (np.full((2, 5, 5), 2.0), None, {}, r"lie in \[0, 1\]"),
        (np.full((2, 5, 5), -0.1), None, {}, r"lie in \[0, 1\]"),
        (np.full((2, 5, 5), np.nan), None, {}, "finite"),
        (np.full((2, 5, 5), np.inf), None, {"normalised": True}, "finite"),
        ("photos", None, {}, "array of numbers"),
        (np.zeros((2, 5, 5)), [0], {}, "one whole number per image"),
        (np.zeros((2, 5, 5)), [0.0, 1.0], {}, "one whole number per image"),
        (np.zeros((2, 5, 5)), ["a", "b"], {}, "array of numbers"),
        (np.zeros((2, 5, 5)), [0, -1], {}, "labels run from 0"),
        (np.zeros((2, 5, 5)), [0, 2], {"classes": ["a", "b"]}, "labels run from 0 to 1"),
    ],
)
def test_bad_arrays(X, y, arguments, rule):
    with pytest.raises(InvalidArgument, match=rule):
        from_arrays(X, y, **arguments)
