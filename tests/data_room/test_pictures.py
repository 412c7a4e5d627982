"""Decoding one picture file, in the one form of every verb."""

import os
import threading

import numpy as np
import pytest
from PIL import Image

from convsmith.data.pictures import Files, printable
from convsmith.errors import RunFailed
from tests.data_room.pictures_on_disk import picture


def read_image(path, channels=3):
    return Files([path]).picture(0, channels)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_plain_modes(tmp_path, mode):
    path = picture(tmp_path / "a.png", mode=mode)
    expected = np.asarray(Image.open(path))
    assert np.array_equal(np.asarray(read_image(path, 1 if mode == "L" else 3)), expected)
    assert read_image(path, 3).mode == "RGB"


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_transparency_is_composed_on_white(tmp_path, mode):
    values = np.zeros((1, 3, 2 if mode == "LA" else 4), np.uint8)
    values[0, :, -1] = 0, 128, 255
    Image.fromarray(values, mode).save(tmp_path / "a.png")
    assert np.asarray(read_image(tmp_path / "a.png")).tolist() == [[[255] * 3, [127] * 3, [0] * 3]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "P")
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.save(tmp_path / "p.png", transparency=0)
    assert np.asarray(read_image(tmp_path / "p.png")).tolist() == [[[255] * 3, [40, 50, 60]]]


def test_sixteen_bits_keep_their_levels(tmp_path):
    values = np.array([[0, 1, 128, 256, 32768, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    found = np.asarray(read_image(tmp_path / "a.png", 1))
    assert np.array_equal(found, (values / 65535).astype(np.float32))


def test_one_bit_palette_and_cmyk(tmp_path):
    bits = np.array([[0, 255], [255, 0]], dtype=np.uint8)
    Image.fromarray(bits).convert("1").save(tmp_path / "bits.png")
    assert np.asarray(read_image(tmp_path / "bits.png", 1)).tolist() == bits.tolist()
    colours = Image.fromarray(np.array([[[255, 0, 0], [0, 0, 255]]], dtype=np.uint8))
    colours.quantize(2).save(tmp_path / "palette.png")
    assert np.asarray(read_image(tmp_path / "palette.png")).tolist() == [[[255, 0, 0], [0, 0, 255]]]
    colours.convert("CMYK").save(tmp_path / "press.tif")
    assert np.array_equal(np.asarray(read_image(tmp_path / "press.tif")), np.asarray(colours))


def test_a_sideways_photograph_is_turned_upright(tmp_path):
    image = Image.fromarray(np.zeros((4, 9, 3), dtype=np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert read_image(tmp_path / "a.jpg").size == (4, 9)


def test_missing_and_broken_files_are_named(tmp_path):
    (tmp_path / "text.png").write_text("hello")
    for name in ("text.png", "gone.png"):
        with pytest.raises(RunFailed, match=name.replace(".", r"\.")):
            read_image(tmp_path / name)


def test_a_pipe_is_an_error_and_does_not_block(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    said = []

    def read():
        with pytest.raises(RunFailed, match=r"pipe\.png: not a regular file"):
            read_image(tmp_path / "pipe.png")
        said.append("done")

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)
    assert said == ["done"]


def test_names_that_are_no_utf8_can_be_read_and_shown(tmp_path):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")
    picture(tmp_path / "a.png").rename(name)
    files = Files([str(tmp_path / "b.png"), name])
    assert files.path(1) == name
    assert printable(name).endswith(r"caf\xe9.png")
    assert files.picture(1, 3).size == (12, 10)
