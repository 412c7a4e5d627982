"""torchvision's and Hugging Face's sets, read from small local files in their own formats."""

import bz2

import numpy as np
import pytest
import torch
from PIL import Image

from convsmith.data import load
from convsmith.data.external import TORCHVISION
from convsmith.errors import InvalidArgument
from data_room.pictures_on_disk import folder
from data_room.test_idx import write_four


def test_torchvision_names_exist_there():
    import torchvision

    for name, parts in TORCHVISION.items():
        assert callable(getattr(torchvision.datasets, name))
        assert 0 in parts


@pytest.mark.parametrize("name", ["MNIST", "KMNIST", "FashionMNIST"])
def test_relatives_of_mnist(tmp_path, name):
    write_four(tmp_path / name / "raw")
    data = load(f"torchvision:{name}", root=tmp_path)
    assert data.description.counts == {"train": 50, "validation": 10, "test": 20}
    assert data.description.size == (28, 28)
    assert data.test.index.tolist() == list(range(60, 80))
    assert len(data.classes) == 10
    assert data.classes[3] == {"MNIST": "3", "KMNIST": "tsu", "FashionMNIST": "Dress"}[name]
    reference = load("fashion-mnist", root=tmp_path / name / "raw")
    assert torch.equal(data.test.pixels(slice(None)), reference.test.pixels(slice(None)))


def test_usps(tmp_path):
    import torchvision

    draw = np.random.default_rng(0)
    for url, name, _ in torchvision.datasets.USPS.split_list.values():
        rows = [
            f"{n % 10 + 1} " + " ".join(f"{i + 1}:{v:.3f}" for i, v in enumerate(draw.uniform(-1, 1, 256)))
            for n in range(40)
        ]
        (tmp_path / name).write_bytes(bz2.compress("\n".join(rows).encode()))
        assert url
    data = load("torchvision:USPS", root=tmp_path, size=8)
    assert data.description.size == (8, 8)
    assert data.description.counts == {"train": 30, "validation": 10, "test": 40}
    assert data.test.labels.tolist() == [n % 10 for n in range(40)]


def test_a_set_that_is_decoded_on_demand(tmp_path):
    for part in ("train", "val"):
        folder(tmp_path / "eurosat" / "2750", classes=("Forest", "River"), suffix=".jpg", size=(9, 9))
        assert part
    data = load("torchvision:EuroSAT", root=tmp_path)
    assert data.classes == ("Forest", "River")
    assert data.description.counts == {"train": 14, "validation": 2, "test": 4}
    assert data.train.pixels([0]).shape == (1, 3, 9, 9)


def test_unknown_and_absent_torchvision_sets(tmp_path, monkeypatch):
    import torchvision

    with pytest.raises(InvalidArgument, match="did you mean 'CIFAR100' or 'CIFAR10'"):
        load("torchvision:cifar10".replace("cifar10", "CIFAR1000"), root=tmp_path)

    def no_network(*_arguments, **_settings):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.datasets.cifar, "download_and_extract_archive", no_network)
    with pytest.raises(InvalidArgument, match=r"cannot be downloaded[\s\S]*no route to host"):
        load("torchvision:CIFAR10", root=tmp_path)


datasets = pytest.importorskip("datasets")


def rows(count, *, start=0, size=(7, 5)):
    draw = np.random.default_rng(start)
    return [Image.fromarray(draw.integers(0, 256, (*size, 3), dtype=np.uint8)) for _ in range(count)]


def saved(root, *, kind=None, labels=None, parts=(("train", 20), ("test", 6)), columns=("image", "label")):
    """Write a Hugging Face data set as its own library saves it."""
    held = {}
    for start, (part, count) in enumerate(parts):
        values = [n % 2 for n in range(count)] if labels is None else labels(part, count)
        features = datasets.Features(
            {columns[0]: datasets.Image(), columns[1]: kind or datasets.ClassLabel(names=["no", "yes"])}
        )
        held[part] = datasets.Dataset.from_dict(
            {columns[0]: rows(count, start=start), columns[1]: values}, features=features
        )
    datasets.DatasetDict(held).save_to_disk(root)
    return root


def test_a_saved_hugging_face_set(tmp_path):
    data = load(f"hf:{saved(tmp_path / 'set')}")
    assert data.classes == ("no", "yes")
    assert data.description.counts == {"train": 18, "validation": 2, "test": 6}
    assert (data.description.size, data.description.channels) == ((7, 5), 3)
    expected = torch.from_numpy(np.stack([np.asarray(i) for i in rows(6, start=1)])).permute(0, 3, 1, 2)
    assert torch.equal((data.test.pixels(slice(None)) * 255).round().byte(), expected)
    assert data.test.labels.tolist() == [0, 1] * 3


def test_a_folder_of_parquet_files(tmp_path):
    (tmp_path / "data").mkdir()
    features = datasets.Features({"img": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    for part, count in (("train", 20), ("validation", 6)):
        held = datasets.Dataset.from_dict(
            {"img": rows(count, start=count), "label": [n % 2 for n in range(count)]}, features=features
        )
        held.to_parquet(tmp_path / "data" / f"{part}-00000-of-00001.parquet")
    data = load(f"hf:{tmp_path}", size=4)
    assert data.classes == ("no", "yes")
    assert data.description.counts == {"train": 18, "validation": 2, "test": 6}
    assert data.train.pixels([0]).shape == (1, 3, 4, 4)


def test_labels_in_words_and_labels_in_numbers(tmp_path):
    words = saved(tmp_path / "w", kind=datasets.Value("string"), labels=lambda _, n: ["b", "a"] * (n // 2))
    assert load(f"hf:{words}").classes == ("a", "b")
    assert load(f"hf:{words}").test.labels.tolist() == [1, 0] * 3
    numbers = saved(tmp_path / "n", kind=datasets.Value("int64"), labels=lambda _, n: [0, 2] * (n // 2))
    assert load(f"hf:{numbers}").classes == ("0", "1", "2")


def test_a_test_part_without_labels_is_told_and_not_used(tmp_path):
    root = saved(tmp_path / "s", labels=lambda part, n: [-1] * n if part == "test" else [0, 1] * (n // 2))
    data = load(f"hf:{root}")
    assert data.description.counts == {"train": 14, "validation": 2, "test": 4}
    assert data.notes == ("the 6 images of an official part without labels are not read",)


def test_columns_and_parts_that_must_be_chosen(tmp_path):
    root = saved(tmp_path / "s", columns=("photo", "kind"), parts=(("train", 20), ("extra", 4)))
    data = load(f"hf:{root}")
    assert data.notes == ("parts not read: extra",)
    assert load(f"hf:{root}?image=photo&label=kind").description.counts == data.description.counts
    with pytest.raises(InvalidArgument, match="no such column"):
        load(f"hf:{root}?label=kinds")
    with pytest.raises(InvalidArgument, match="config, image and label"):
        load(f"hf:{root}?colour=red")
    other = saved(tmp_path / "o", kind=datasets.Value("int64"), columns=("image", "kind"))
    with pytest.raises(InvalidArgument, match=r"0 label columns[\s\S]*label=COLUMN"):
        load(f"hf:{other}")
    assert load(f"hf:{other}?label=kind").classes == ("0", "1")


def test_copies_leave_training_here_too(tmp_path):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["no", "yes"])})
    train, test = rows(20), rows(6, start=1)
    train[4] = test[0]
    held = {
        part: datasets.Dataset.from_dict({"image": i, "label": [n % 2 for n in range(len(i))]}, features=features)
        for part, i in (("train", train), ("test", test))
    }
    datasets.DatasetDict(held).save_to_disk(tmp_path / "s")
    data = load(f"hf:{tmp_path / 's'}")
    assert sum(data.description.counts.values()) == 25
    assert 4 not in torch.cat([data.train.index, data.validation.index]).tolist()


def test_an_unknown_set_offline(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(InvalidArgument, match="cannot be loaded"):
        load("hf:nobody/nothing-at-all")


def test_a_missing_package_is_named(monkeypatch):
    import sys

    from convsmith.errors import MissingExtra

    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(MissingExtra, match=r"convsmith\[hub\]"):
        load("hf:anything")
