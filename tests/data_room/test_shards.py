"""Tar shards: what lies in them, split over workers and processes, and what is refused."""

import io
import json
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.data import Loader, load
from convsmith.errors import InvalidArgument, RunFailed


def shard(path, start, count, *, label="cls", classes=3, broken=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for n in range(start, start + count):
            draw, stream = np.random.default_rng(n), io.BytesIO()
            Image.fromarray(draw.integers(0, 256, (9, 11, 3), dtype=np.uint8)).save(stream, "PNG")
            files = {"png": b"no image" if n in broken else stream.getvalue()}
            if label == "cls":
                files["cls"] = str(n % classes).encode()
            elif label == "json":
                files["json"] = json.dumps({"label": "abc"[n % classes], "caption": "x"}).encode()
            elif label == "number":
                files["json"] = json.dumps(n).encode()
            for suffix, raw in files.items():
                about = tarfile.TarInfo(f"set/{n:06d}.{suffix}")
                about.size = len(raw)
                tar.addfile(about, io.BytesIO(raw))


@pytest.fixture
def shards(tmp_path):
    for part, number, start in (("train", 0, 0), ("train", 1, 20), ("val", 0, 100)):
        shard(tmp_path / f"{part}-{number:03d}.tar", start, 20)
    return tmp_path


@pytest.mark.parametrize("spec", ["", "/train-{000..001}.tar", "/train-*.tar"])
def test_every_sample_is_there_once(shards, spec):
    data = load(f"wds:{shards}{spec}")
    counts = {"train": 36, "validation": 4, "test": 20} if not spec else {"train": 28, "validation": 4, "test": 8}
    assert sum(data.description.counts.values()) == sum(counts.values())
    assert data.description.counts["test"] == (20 if not spec else data.description.counts["test"])
    assert data.classes == ("0", "1", "2")
    for split in data.splits.values():
        for n, number in enumerate(split.index.tolist()):
            seed = number if number < 40 else number + 60
            expected = np.random.default_rng(seed).integers(0, 256, (9, 11, 3), dtype=np.uint8)
            assert np.array_equal((split.pixels([n])[0].permute(1, 2, 0) * 255).round().byte().numpy(), expected)
            assert int(split.labels[n]) == seed % 3


def test_workers_and_processes_see_every_image_once(shards):
    split = load(f"wds:{shards}", augment="flip-crop").train
    whole = list(Loader(split, 8, seed=1, shuffle=True, augment=True, workers=2).epoch(3))
    parts = [list(Loader(split, 4, seed=1, shuffle=True, augment=True, rank=r, world=2).epoch(3)) for r in (0, 1)]
    for one, left, right in zip(whole, *parts, strict=True):
        assert torch.equal(one.images, torch.cat([left.images, right.images]))
    assert sorted(torch.cat([b.index for b in whole]).tolist()) == sorted(split.index.tolist())


def test_labels_in_words_and_none_at_all(tmp_path):
    shard(tmp_path / "a.tar", 0, 12, label="json")
    assert load(f"wds:{tmp_path / 'a.tar'}").classes == ("a", "b", "c")
    shard(tmp_path / "b.tar", 0, 12, label=None)
    assert load(f"wds:{tmp_path / 'b.tar'}").classes == ()
    shard(tmp_path / "c.tar", 0, 12, label="number")  # metadata that is no object names no class
    assert load(f"wds:{tmp_path / 'c.tar'}").classes == ()


def test_what_cannot_be_read_is_one_line(tmp_path, monkeypatch):
    from convsmith.data import checking

    (tmp_path / "text.tar").write_text("hello")
    shard(tmp_path / "train-0.tar", 0, 12, broken=[5])
    for spec, rule in (
        ("text.tar", "uncompressed tar"),
        ("lost.tar", "does not exist"),
        ("none-*.tar", "no shard"),
        ("train-0.tar", r"1 of 12[\s\S]*train-0\.tar at byte"),
    ):
        with pytest.raises(InvalidArgument, match=rule):
            load(f"wds:{tmp_path / spec}")
    with pytest.raises(InvalidArgument, match="a stream has none"):
        load("wds:https://somewhere/train-{000..010}.tar")
    assert len(load(f"wds:{tmp_path / 'train-0.tar'}", broken="skip").skipped) == 1
    monkeypatch.setattr(checking, "CHECKED", 5)
    monkeypatch.setattr(checking, "SAMPLE", 2)
    data = load(f"wds:{tmp_path / 'train-0.tar'}", size=8)
    with pytest.raises(RunFailed, match="not an image"):
        [list(Loader(split, 4)) for split in data.splits.values()]


def test_a_mask_beside_an_image_is_not_the_image(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        for n in range(6):
            for suffix, value in (("cls", None), ("jpg", 200), ("seg.png", 0)):
                stream = io.BytesIO(str(n % 2).encode())
                if value is not None:
                    stream = io.BytesIO()
                    Image.new("RGB", (8, 8), (value, value, n)).save(stream, "PNG")
                about = tarfile.TarInfo(f"{n:03d}.{suffix}")
                about.size = len(stream.getvalue())
                tar.addfile(about, io.BytesIO(stream.getvalue()))
    assert float(load(f"wds:{tmp_path}").train.pixels(slice(None))[:, 0].min()) > 0.7
