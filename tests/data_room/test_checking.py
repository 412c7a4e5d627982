"""Looking at many images before any work: small sets decoded, large ones by a sample of headers."""

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.data import Loader, checking, load
from convsmith.errors import InvalidArgument, RunFailed
from tests.data_room.pictures_on_disk import folder


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Give a folder that counts as too large to be decoded at load."""
    monkeypatch.setattr(checking, "CHECKED", 5)
    return folder(tmp_path / "pets", count=8)


def test_a_large_folder_is_read_by_headers_and_gives_the_same(large, monkeypatch):
    by_header = load(f"imagefolder:{large}", augment="imagenet", size=6)
    decoded = load(f"imagefolder:{large}", augment="imagenet", size=6, check=True)
    assert by_header.description == decoded.description
    for a, b in zip(
        Loader(by_header.train, 4, shuffle=True, augment=True, workers=2),
        Loader(decoded.train, 4, shuffle=True, augment=True),
        strict=True,
    ):
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.index, b.index)


def test_a_large_folder_decodes_nothing_before_work(large, monkeypatch):
    def refuse(_image):
        raise AssertionError("decoded")

    monkeypatch.setattr(Image.Image, "load", refuse)
    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", refuse)
    assert sum(load(f"imagefolder:{large}").description.counts.values()) == 16


def test_a_large_folder_still_finds_files_that_are_no_pictures_and_copies(large):
    (large / "cat" / "00.png").write_text("hello")
    (large / "dog" / "copy.png").write_bytes((large / "dog" / "01.png").read_bytes())
    with pytest.raises(InvalidArgument, match=r"1 of 17[\s\S]*cat.00\.png: not an image"):
        load(f"imagefolder:{large}")
    data = load(f"imagefolder:{large}", broken="skip")
    assert len(data.skipped) == 1
    (large / "cat" / "00.png").unlink()
    data = load(f"imagefolder:{large}")
    numbers = {sorted(large.rglob("*.png")).index(large / "dog" / name) for name in ("01.png", "copy.png")}
    assert sum(bool(numbers & set(split.index.tolist())) for split in data.splits.values()) == 1


def test_copies_are_not_looked_for_in_very_large_sets_and_that_is_said(large, monkeypatch):
    monkeypatch.setattr(checking, "COMPARED", 5)
    assert "copies are not looked for among 16 images" in load(f"imagefolder:{large}").notes


@pytest.mark.parametrize("workers", [0, 2])
def test_a_file_cut_in_its_middle_is_named_when_it_is_reached(tmp_path, monkeypatch, workers):
    monkeypatch.setattr(checking, "CHECKED", 5)
    for part in ("train", "test"):
        folder(tmp_path / part, count=4)
    cut = tmp_path / "test" / "cat" / "03.png"
    cut.write_bytes(cut.read_bytes()[:300])
    data = load(f"imagefolder:{tmp_path}")
    list(Loader(data.train, 2, workers=workers))
    with pytest.raises(RunFailed, match=r"test.cat.03\.png: image file is truncated"):
        list(Loader(data.test, 2, workers=workers))
    with pytest.raises(InvalidArgument, match=r"1 of 16[\s\S]*test.cat.03\.png"):
        load(f"imagefolder:{tmp_path}", check=True)


def test_pictures_of_equal_length_that_differ_are_no_copies(large):
    for number, name in enumerate(("one.ppm", "two.ppm")):
        first = bytes([number] * 3)
        (large / "dog" / name).write_bytes(b"P6 40 40 255\n" + first + b"\7" * (3 * 1599))
    (large / "dog" / "same.ppm").write_bytes((large / "dog" / "one.ppm").read_bytes())
    pictures = load(f"imagefolder:{large}", size=8).train.images
    groups = checking._copies_by_bytes(pictures).tolist()
    names = [pictures.name(n).rsplit("/", 1)[1] for n in range(len(pictures))]
    one, two, same = (groups[names.index(name)] for name in ("one.ppm", "two.ppm", "same.ppm"))
    assert one == same
    assert one != two
    assert len(set(groups)) == len(groups) - 1


@pytest.mark.parametrize(("largest", "bits"), [(1000, 10), (4000, 12), (60000, 16)])
def test_the_depth_of_16_bit_pictures_is_that_of_the_set(tmp_path, largest, bits):
    draw = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for n in range(5):
            values = draw.integers(0, largest, (6, 7), dtype=np.uint16)
            values[0, 0] = largest if (name, n) == ("b", 3) else 0
            Image.fromarray(values).save(tmp_path / name / f"{n}.png")
    data = load(f"imagefolder:{tmp_path}")
    assert f"{bits}-bit levels" in data.notes[0]
    assert data.description.channels == 1
    number = int(data.train.index[0])
    values = np.asarray(Image.open(sorted(tmp_path.rglob("*.png"))[number])).astype(np.float64) / (2**bits - 1)
    assert np.array_equal(data.train.pixels([0])[0, 0].numpy(), values.astype(np.float32))
    colour = load(f"imagefolder:{tmp_path}", channels=3)
    assert torch.equal(colour.train.pixels([0])[0, 2], data.train.pixels([0])[0, 0])


def test_progress_is_told(tmp_path):
    told = []
    load(
        f"imagefolder:{folder(tmp_path / 'pets')}", progress=lambda done, count, note: told.append((done, count, note))
    )
    assert told[-1][:2] == (20, 20)
    assert "looking at" in told[0][2]
