"""Files in the IDX format (MNIST and its relatives), plain or gzipped, and Fashion-MNIST from them."""

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
from convsmith.errors import InvalidArgument

_TYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_BYTE = np.dtype(np.uint8)
_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
#: where packages of operating systems put the files
SYSTEM_PLACES = (Path("/usr/share/datasets/fashion-mnist"), Path("/usr/share/dataset-fashion-mnist"))


def read_idx(path: Path) -> NDArray[np.generic]:
    """Return the array of an IDX file, gzipped or not, in native byte order.

    The format: two zero bytes, a type code, the number of axes, the length of each axis as a big-endian 32-bit number,
    the values.

    Raises:
        InvalidArgument: the file is missing, is no IDX file, or holds more or fewer values than its header says.
    """
    try:
        raw = path.read_bytes()
        if raw[:2] == b"\x1f\x8b":
            raw = gzip.decompress(raw)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidArgument("the file cannot be read", argument="an IDX file", given=f"{path}: {error}") from error
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _TYPES:
        raise InvalidArgument("an IDX file begins with two zero bytes and a known type", given=path)
    kind, axes = np.dtype(_TYPES[raw[2]]), raw[3]
    shape = tuple(int(n) for n in np.frombuffer(raw[4 : 4 + 4 * axes], ">u4")) if len(raw) >= 4 + 4 * axes else ()
    expected = 4 + 4 * axes + int(np.prod(shape, dtype=np.float64)) * kind.itemsize
    if len(shape) != axes or len(raw) != expected:
        raise InvalidArgument(
            "an IDX file holds as many values as its header says",
            argument=f"{expected} bytes for shape {shape}",
            given=f"{path}: {len(raw)} bytes",
            hint="the file is incomplete or damaged; fetch it again",
        )
    return np.frombuffer(raw, kind, offset=4 + 4 * axes).reshape(shape).astype(kind.newbyteorder("="))


def find_idx(folder: Path) -> tuple[Path, Path, Path, Path] | None:
    """Return the four files of a MNIST-like set in ``folder`` (train images, labels, test images, labels), or None."""
    found = []
    for stem in _FILES:
        spellings = [stem, stem.replace("-idx", ".idx")]
        paths = [folder / (spelling + end) for spelling in spellings for end in ("", ".gz")]
        path = next((p for p in paths if p.is_file()), None)
        if path is None:
            return None
        found.append(path)
    return (found[0], found[1], found[2], found[3])


def fashion_folder(root: Path | None) -> Path | None:
    """Return the folder that holds Fashion-MNIST, or None.

    With ``root`` only that folder (and the two names it is usually given inside one) is looked at; without, the folder
    in ``CONVSMITH_DATA`` and then the places of operating system packages.
    """
    bases = [data_home()] if root is None else [root]
    places = [b / inner for b in bases for inner in ("", "fashion-mnist", "FashionMNIST/raw")]
    places += SYSTEM_PLACES if root is None else ()
    return next((place for place in places if find_idx(place) is not None), None)


@SOURCES.register("fashion-mnist", takes=None, extra=None, classes=10, size=(28, 28), channels=1, count=70000)
def fashion_mnist(request: Request) -> Material:
    """Fashion-MNIST: 60000 and 10000 pictures of clothes, 28 x 28, one channel (IDX files or download)."""
    folder = fashion_folder(request.root)
    if folder is None:
        home = request.root or data_home()
        downloaded("FashionMNIST", home, "fashion-mnist")
        folder = home / "FashionMNIST" / "raw"
    images, labels, official = _read_four(folder)
    return Material("fashion-mnist", _FASHION, images, labels, f"Fashion-MNIST, IDX files in {folder}", official)


@lru_cache(maxsize=2)
def _read_four(folder: Path) -> tuple[Tensor, Tensor, Tensor]:
    paths = find_idx(folder)
    if paths is None:
        raise InvalidArgument("the four IDX files must be there", argument=", ".join(_FILES), given=str(folder))
    arrays = [read_idx(path) for path in paths]
    for pictures, answers, path in ((arrays[0], arrays[1], paths[0]), (arrays[2], arrays[3], paths[2])):
        if pictures.ndim != 3 or answers.shape != pictures.shape[:1] or {pictures.dtype, answers.dtype} != {_BYTE}:
            raise InvalidArgument(
                "images are bytes [N, H, W] with one byte label each",
                given=f"{path}: {pictures.dtype} {pictures.shape} with {answers.dtype} {answers.shape}",
            )
    if arrays[0].shape[1:] != arrays[2].shape[1:]:
        raise InvalidArgument("train and test images have one size", given=f"{arrays[0].shape}, {arrays[2].shape}")
    labels = torch.from_numpy(np.concatenate([arrays[1], arrays[3]]).astype(np.int64))
    if len(labels) and int(labels.max()) >= len(_FASHION):
        raise InvalidArgument("labels run from 0 to 9", given=f"{folder}: a label of {int(labels.max())}")
    images = torch.from_numpy(np.concatenate([arrays[0], arrays[2]]))[:, None]
    official = torch.full((len(labels),), TRAIN)
    official[len(arrays[1]) :] = TEST
    return images, labels, official
