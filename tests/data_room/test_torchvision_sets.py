"""torchvision's sets, read from small local files in their own formats."""

import bz2

import numpy as np
import pytest
import torch

from convsmith.data import load
from convsmith.data.torchvision_sets import TORCHVISION
from convsmith.errors import InvalidArgument
from tests.data_room.pictures_on_disk import folder
from tests.data_room.test_embedded import write_four


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


def test_pictures_of_two_sizes_are_found_when_small_and_named_when_large(tmp_path, monkeypatch):
    from convsmith.data import checking
    from convsmith.errors import RunFailed
    from tests.data_room.pictures_on_disk import picture

    root = folder(tmp_path / "eurosat" / "2750", classes=("Forest", "River"), suffix=".jpg", size=(9, 9))
    picture(root / "River" / "zz.jpg", size=(9, 20))
    with pytest.raises(InvalidArgument, match="differ in size"):
        load("torchvision:EuroSAT", root=tmp_path)
    monkeypatch.setattr(checking, "CHECKED", 5)
    with pytest.raises(RunFailed, match=r"EuroSAT image 20, 9 x 20[\s\S]*size="):
        [split.pixels(slice(None)) for split in load("torchvision:EuroSAT", root=tmp_path).splits.values()]
    data = load("torchvision:EuroSAT", root=tmp_path, size=6)
    assert sum(len(split.pixels(slice(None))) for split in data.splits.values()) == 21
    assert "1 of 21 files were looked at" in data.notes[0]


@pytest.mark.parametrize("parts", [(), ("train",), ("train", "val")])
def test_a_folder_of_timm_is_divided_where_it_is_not(parts, tmp_path, monkeypatch):
    """Regression: without a folder for validation timm gives the whole, and test images were training images."""
    from convsmith.data import checking

    monkeypatch.setattr(checking, "CHECKED", 1)  # as in sets too large to look for copies
    for part in parts or ("",):
        folder(tmp_path / part, classes=("cat", "dog"), size=(9, 9))
    data = load("timm:folder", root=tmp_path)
    assert data.classes == ("cat", "dog")
    assert sum(data.description.counts.values()) == 20 * max(1, len(parts))
    assert min(data.description.counts.values()) > 0


def test_timm_gives_no_image_in_place_of_a_broken_one(tmp_path):
    """Regression: its data set shows the next image, under the label of the broken one."""
    folder(tmp_path, classes=("cat", "dog"), size=(9, 9))
    (tmp_path / "cat" / "00.png").write_text("no image")
    with pytest.raises(InvalidArgument, match="1 of 20 image files cannot be read"):
        load("timm:folder", root=tmp_path)


def test_a_name_that_timm_would_take_for_a_folder_is_refused(tmp_path):
    folder(tmp_path, classes=("cat", "dog"), size=(9, 9))
    with pytest.raises(InvalidArgument, match="torch/cifar10"):
        load("timm:cifar10", root=tmp_path)
