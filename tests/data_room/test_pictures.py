"""Decoding one picture file, and surveying many."""

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.data import Loader, load, pictures, read_picture
from convsmith.errors import InvalidArgument, RunFailed
from data_room.pictures_on_disk import folder, picture


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


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Give a folder that counts as too large to be decoded at load."""
    monkeypatch.setattr(pictures, "CHECKED_FILES", 5)
    return folder(tmp_path / "pets", count=8)


def test_a_large_folder_is_read_by_headers_and_gives_the_same(large, monkeypatch):
    by_header = load(f"imagefolder:{large}", augment="imagenet", size=6)
    monkeypatch.setattr(pictures, "CHECKED_FILES", 5000)
    decoded = load(f"imagefolder:{large}", augment="imagenet", size=6)
    assert by_header.train.store.decode.kept is None
    assert decoded.train.store.decode.kept is not None
    assert by_header.description == decoded.description
    for a, b in zip(
        Loader(by_header.train, 4, shuffle=True, augment=True, workers=2),
        Loader(decoded.train, 4, shuffle=True, augment=True),
        strict=True,
    ):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)


def test_a_large_folder_still_finds_files_that_are_no_pictures_and_copies(large):
    (large / "cat" / "00.png").write_text("hello")
    (large / "dog" / "copy.png").write_bytes((large / "dog" / "01.png").read_bytes())
    with pytest.raises(InvalidArgument, match=r"1 of 17[\s\S]*cat.00\.png: not an image"):
        load(f"imagefolder:{large}")
    data = load(f"imagefolder:{large}", broken="skip")
    assert len(data.skipped) == 1
    numbers = {sorted(large.rglob("*.png")).index(large / "dog" / name) for name in ("01.png", "copy.png")}
    assert sum(bool(numbers & set(split.index.tolist())) for split in data.splits.values()) == 1


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_in_its_middle_is_named_when_it_is_reached(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(pictures, "CHECKED_FILES", 5)
    for part in ("train", "test"):
        folder(tmp_path / part, count=4)
    cut = tmp_path / "test" / "cat" / "03.png"
    cut.write_bytes(cut.read_bytes()[:300])
    data = load(f"imagefolder:{tmp_path}")
    list(Loader(data.train, 2, workers=workers))
    with pytest.raises(RunFailed, match=r"test.cat.03\.png: image file is truncated"):
        list(Loader(data.test, 2, workers=workers))


def test_pictures_beyond_the_memory_bound_are_decoded_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "KEPT_BYTES", 100)
    data = load(f"imagefolder:{folder(tmp_path / 'pets')}")
    assert data.train.store.decode.kept is None
    assert data.train.pixels([0]).shape == (1, 3, 10, 12)
