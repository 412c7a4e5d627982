"""Decoding one picture file."""

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.data import read_picture
from convsmith.errors import RunFailed
from tests.data_room.pictures_on_disk import picture


@pytest.mark.parametrize(("mode", "channels"), [("L", 1), ("LA", 2), ("RGB", 3), ("RGBA", 4)])
def test_plain_modes(tmp_path, mode, channels):
    path = picture(tmp_path / "a.png", mode=mode)
    got = read_picture(path)
    assert got.dtype == torch.uint8
    assert got.shape == (channels, 10, 12)
    assert np.array_equal(got.permute(1, 2, 0).squeeze().numpy(), np.asarray(Image.open(path)))


def test_sixteen_bits_are_rounded_not_clipped(tmp_path):
    values = np.array([[0, 128, 129, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    assert read_picture(tmp_path / "a.png").tolist() == [[[0, 0, 1, 1, 128, 255]]]


def test_one_bit_palette_and_cmyk(tmp_path):
    bits = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    Image.fromarray(bits).convert("1").save(tmp_path / "bits.png")
    assert read_picture(tmp_path / "bits.png").tolist() == [bits.tolist()]
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    colours.quantize(2).save(tmp_path / "palette.png")
    assert read_picture(tmp_path / "palette.png").tolist() == [[[255, 0]], [[0, 0]], [[0, 255]]]
    colours.convert("CMYK").save(tmp_path / "press.tif")
    assert read_picture(tmp_path / "press.tif").shape == (3, 1, 2)


def test_floating_point_pictures_are_refused_by_name(tmp_path):
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(RunFailed, match=r"a\.tif: pixels of kind 'F'"):
        read_picture(tmp_path / "a.tif")


def test_a_sideways_photograph_is_turned_upright(tmp_path):
    image = Image.fromarray(np.zeros((4, 9, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_picture(tmp_path / "a.jpg").shape == (3, 9, 4)


def test_missing_and_broken_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for name in ("text.png", "gone.png"):
        with pytest.raises(RunFailed, match=name.replace(".", r"\.")):
            read_picture(tmp_path / name)
