"""Fashion-MNIST from IDX files, and files that are damaged."""

import gzip

import numpy as np
import pytest
import torch

from convsmith.data import embedded, load
from convsmith.errors import InvalidArgument

CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def encoded(array):
    kind = array.dtype.str[1:]
    header = bytes([0, 0, CODES[kind], array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
    return header + array.astype(array.dtype.newbyteorder(">")).tobytes()


def write_four(root, *, train=60, test=20, side=28, packed=False, spelling="-idx"):
    root.mkdir(parents=True, exist_ok=True)
    draw = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", test)):
        images = draw.integers(0, 256, (count, side, side), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        for name, array in (("images-idx3", images), ("labels-idx1", labels)):
            raw = encoded(array)
            path = root / f"{stem}-{name.replace('-idx', spelling)}-ubyte{'.gz' if packed else ''}"
            path.write_bytes(gzip.compress(raw, mtime=0) if packed else raw)
    return root


@pytest.mark.parametrize(
    "damage",
    [
        lambda raw: b"",
        lambda raw: b"\x01" + raw[1:],
        lambda raw: b"\0\0\x07" + raw[3:],
        lambda raw: raw[:-1],
        lambda raw: raw + b"\0",
        lambda raw: raw[:7],
        lambda raw: encoded(np.zeros((60, 28, 28), dtype=np.float32)),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_damaged_files(tmp_path, damage, packed):
    write_four(tmp_path, packed=packed)
    path = tmp_path / f"train-images-idx3-ubyte{'.gz' if packed else ''}"
    raw = damage(gzip.decompress(path.read_bytes()) if packed else path.read_bytes())
    path.write_bytes(gzip.compress(raw, mtime=0) if packed else raw)
    with pytest.raises(InvalidArgument, match=r"incomplete or damaged"):
        load("fashion-mnist", root=tmp_path)


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"\x1f\x8b" + raw])
def test_damaged_packing(tmp_path, damage):
    write_four(tmp_path, packed=True)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(InvalidArgument, match=r"cannot be downloaded or read[\s\S]*incomplete or damaged"):
        load("fashion-mnist", root=tmp_path)


@pytest.mark.parametrize("inner", [".", "fashion-mnist", "FashionMNIST/raw"])
@pytest.mark.parametrize("packed", [False, True])
def test_fashion_mnist_from_a_root(tmp_path, inner, packed, monkeypatch):
    write_four(tmp_path / inner, packed=packed, spelling=".idx" if packed else "-idx")
    data = load("fashion-mnist", root=tmp_path)
    assert data.description.counts == {"train": 50, "validation": 10, "test": 20}
    assert data.classes[9] == "Ankle boot"
    assert data.test.index.tolist() == list(range(60, 80))
    assert data.test.labels.tolist() == [n % 10 for n in range(20)]
    monkeypatch.setenv("CONVSMITH_DATA", str(tmp_path))
    assert torch.equal(load("fashion-mnist").test.pixels([3]), data.test.pixels([3]))


def test_training_copies_of_test_images_are_left_out(tmp_path):
    write_four(tmp_path)
    train, test = (tmp_path / f"{stem}-images-idx3-ubyte" for stem in ("train", "t10k"))
    raw, image = bytearray(train.read_bytes()), 28 * 28
    raw[16 + 7 * image : 16 + 8 * image] = test.read_bytes()[16 + 2 * image : 16 + 3 * image]
    train.write_bytes(raw)
    data = load("fashion-mnist", root=tmp_path)
    assert sum(data.description.counts.values()) == 79
    assert len(data.test) == 20
    assert data.notes == ("1 images are left out as copies of official test or validation images: 7",)


def test_files_that_do_not_belong_together(tmp_path):
    write_four(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(encoded(np.zeros(3, dtype=np.uint8)))
    with pytest.raises(InvalidArgument, match="one label each"):
        load("fashion-mnist", root=tmp_path)
    write_four(tmp_path / "other")
    (tmp_path / "other/train-labels-idx1-ubyte").write_bytes(encoded(np.full(60, 10, dtype=np.uint8)))
    with pytest.raises(InvalidArgument, match="labels run from 0 to 9"):
        load("fashion-mnist", root=tmp_path / "other")


def test_without_files_and_without_network_the_error_says_what_to_do(tmp_path, monkeypatch):
    import torchvision

    def no_network(*_arguments, **_settings):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.mnist, "download_and_extract_archive", no_network)
    with pytest.raises(InvalidArgument) as caught:
        load("fashion-mnist", root=tmp_path)
    assert "cannot be downloaded" in str(caught.value)
    assert "CONVSMITH_DATA" in str(caught.value)
    assert str(tmp_path) in str(caught.value)


@pytest.mark.skipif(
    not any(map(embedded.fashion_files, embedded.SYSTEM_PLACES)), reason="no system package of Fashion-MNIST"
)
def test_the_real_set(monkeypatch):
    monkeypatch.delenv("CONVSMITH_DATA", raising=False)
    data = load("fashion-mnist")
    assert data.description.counts == {"train": 54000, "validation": 6000, "test": 10000}
    assert data.test.labels.bincount().tolist() == [1000] * 10
    assert data.validation.labels.bincount().tolist() == [600] * 10
    # mean and deviation of the whole official training set, known from many recipes
    assert data.description.mean[0] == pytest.approx(0.2860, abs=5e-4)
    assert data.description.std[0] == pytest.approx(0.3530, abs=5e-4)
