"""IDX files and Fashion-MNIST from them."""

import gzip

import numpy as np
import pytest
import torch

from convsmith.data import embedded, load, read_idx
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


@pytest.mark.parametrize("kind", CODES)
@pytest.mark.parametrize("shape", [(3,), (2, 3, 4), (0, 5), (1, 1, 1, 2)])
def test_every_type_and_shape_comes_back(tmp_path, kind, shape):
    array = (np.random.default_rng(0).random(shape) * 100).astype(kind)
    (tmp_path / "a").write_bytes(encoded(array))
    (tmp_path / "a.gz").write_bytes(gzip.compress(encoded(array), mtime=0))
    for name in ("a", "a.gz"):
        got = read_idx(tmp_path / name)
        assert got.dtype == array.dtype
        assert np.array_equal(got, array)


GOOD = encoded(np.arange(6, dtype=np.uint8).reshape(2, 3))


@pytest.mark.parametrize(
    ("raw", "rule"),
    [
        (b"", "begins with two zero bytes"),
        (b"\x01" + GOOD[1:], "begins with two zero bytes"),
        (b"\0\0\x07" + GOOD[3:], "known type"),
        (GOOD[:-1], "as many values"),
        (GOOD + b"\0", "as many values"),
        (GOOD[:7], "as many values"),
        (gzip.compress(GOOD, mtime=0)[:-9], "cannot be read"),
        (b"\x1f\x8b" + GOOD, "cannot be read"),
    ],
)
def test_damaged_files(tmp_path, raw, rule):
    (tmp_path / "a").write_bytes(raw)
    with pytest.raises(InvalidArgument, match=rule):
        read_idx(tmp_path / "a")


def test_a_missing_file(tmp_path):
    with pytest.raises(InvalidArgument, match="cannot be read"):
        read_idx(tmp_path / "gone")


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
    train, test = (read_idx(tmp_path / f"{stem}-images-idx3-ubyte").copy() for stem in ("train", "t10k"))
    train[7] = test[2]
    (tmp_path / "train-images-idx3-ubyte").write_bytes(encoded(train))
    data = load("fashion-mnist", root=tmp_path)
    assert sum(data.description.counts.values()) == 79
    assert len(data.test) == 20
    assert data.notes == ("1 images are left out as copies of official test or validation images: 7",)


def test_files_that_do_not_belong_together(tmp_path):
    write_four(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(encoded(np.zeros(3, dtype=np.uint8)))
    with pytest.raises(InvalidArgument, match="one byte label each"):
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
    not any(map(embedded.find_idx, embedded.SYSTEM_PLACES)), reason="no system package of Fashion-MNIST"
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
