"""Looking at many pictures before any work: small sets decoded, large ones by their headers."""

import pytest
import torch

from convsmith.data import Loader, load, survey
from convsmith.data.source import Request
from convsmith.errors import InvalidArgument, RunFailed
from tests.data_room.pictures_on_disk import folder


@pytest.fixture
def large(tmp_path, monkeypatch):
    """Give a folder that counts as too large to be decoded at load."""
    monkeypatch.setattr(survey, "CHECKED_FILES", 5)
    return folder(tmp_path / "pets", count=8)


def test_a_large_folder_is_read_by_headers_and_gives_the_same(large, monkeypatch):
    by_header = load(f"imagefolder:{large}", augment="imagenet", size=6)
    monkeypatch.setattr(survey, "CHECKED_FILES", 5000)
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
    monkeypatch.setattr(survey, "CHECKED_FILES", 5)
    for part in ("train", "test"):
        folder(tmp_path / part, count=4)
    cut = tmp_path / "test" / "cat" / "03.png"
    cut.write_bytes(cut.read_bytes()[:300])
    data = load(f"imagefolder:{tmp_path}")
    list(Loader(data.train, 2, workers=workers))
    with pytest.raises(RunFailed, match=r"test.cat.03\.png: image file is truncated"):
        list(Loader(data.test, 2, workers=workers))


def test_pictures_beyond_the_memory_bound_are_decoded_anew(tmp_path, monkeypatch):
    monkeypatch.setattr(survey, "KEPT_BYTES", 100)
    data = load(f"imagefolder:{folder(tmp_path / 'pets')}")
    assert data.train.store.decode.kept is None
    assert data.train.pixels([0]).shape == (1, 3, 10, 12)


def test_pictures_that_end_alike_but_differ_are_no_copies(large):
    """Two files of one length and one end, told apart by their beginnings only."""
    for number, name in enumerate(("one.ppm", "two.ppm")):
        first = bytes([number] * 3)
        (large / "dog" / name).write_bytes(b"P6 40 40 255\n" + first + b"\7" * (3 * 1599))
    (large / "dog" / "same.ppm").write_bytes((large / "dog" / "one.ppm").read_bytes())
    data = load(f"imagefolder:{large}", size=8)
    request = Request("a large folder", "", None, "refuse", None)
    groups = survey.survey(data.train.store.decode.originals, request).copies.tolist()
    names = [name.rsplit("/", 1)[1] for name in data.train.store.names]
    one, two, same = (groups[names.index(name)] for name in ("one.ppm", "two.ppm", "same.ppm"))
    assert one == same
    assert one != two
    assert len(set(groups)) == len(groups) - 1


def test_progress_is_told(tmp_path):
    told = []
    load(
        f"imagefolder:{folder(tmp_path / 'pets')}", progress=lambda done, count, note: told.append((done, count, note))
    )
    assert told[0][:2] == (20, 20)
    assert "looking at" in told[0][2]
    assert told[-1][:2] == (14, 14)
