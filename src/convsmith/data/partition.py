"""Divide images into train, validation and test so that no image, and no copy of it, is in two of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convsmith.data.keyed import hash64

TRAIN, VALIDATION, TEST, LEFT_OUT = 0, 1, 2, -1
NAMES = {TRAIN: "train", VALIDATION: "validation", TEST: "test"}
#: shares of the images for validation and test, where the source does not come with these
VALIDATION_SHARE, TEST_SHARE = 0.1, 0.2


_TEST_NAMES, _VALIDATION_NAMES = ("test", "testing"), ("validation", "valid", "val", "dev")


def official_parts(names: Iterable[str]) -> dict[int, str]:
    """Return which of a source's parts serve as TRAIN, VALIDATION and TEST; {} if none is called train.

    A validation part without a test part is taken as the test set: it is what others report on. The validation images,
    on which choices are made, then come out of the training images.
    """
    known = {name.lower(): name for name in names}
    found = {
        part: next((known[n] for n in spellings if n in known), None)
        for part, spellings in ((TRAIN, ("train", "training")), (VALIDATION, _VALIDATION_NAMES), (TEST, _TEST_NAMES))
    }
    if found[TRAIN] is None:
        return {}
    if found[TEST] is None:
        found[TEST], found[VALIDATION] = found[VALIDATION], None
    return {part: name for part, name in found.items() if name is not None}


def copies(fingerprints: Iterable[Hashable]) -> Tensor:
    """Give images a group number: the position of the first image with an equal fingerprint."""
    first: dict[Hashable, int] = {}
    return torch.tensor([first.setdefault(mark, n) for n, mark in enumerate(fingerprints)], dtype=torch.int64)


def digest(raw: bytes) -> bytes:
    """Return a fingerprint of an image's bytes: equal for copies."""
    return blake2b(raw, digest_size=16).digest()


def partition(labels: Tensor, groups: Tensor, official: Tensor, seed: int) -> Tensor:
    """Assign every image to a split.

    Args:
        labels: [N] classes, -1 where unknown.
        groups: [N] from `copies`; images of one group never part.
        official: [N] TRAIN, VALIDATION or TEST as the source itself divides them; all TRAIN if it does not.
        seed: key of the division.

    Returns:
        [N] TRAIN, VALIDATION, TEST, or LEFT_OUT for a training image that is a copy of an official test or validation
        image (official sets are kept whole, except for validation images that are copies of test images).

    The division is stratified: per class, groups in keyed order fill the train share, then validation, then test. A
    class always has a training image; one with three or more has one in each split.
    """
    part = official.numpy().copy()
    group = groups.numpy()
    highest = np.full(len(part), TRAIN, part.dtype)
    np.maximum.at(highest, group, part)
    part[part < highest[group]] = LEFT_OUT
    has_test, has_validation = bool((official == TEST).any()), bool((official == VALIDATION).any())
    shares = (0.0 if has_validation else VALIDATION_SHARE, 0.0 if has_test else TEST_SHARE)
    if any(shares):
        free = np.flatnonzero(part == TRAIN)
        heads = group[free]
        classes = labels.numpy()[heads]
        for number in np.unique(classes):
            members = classes == number
            part[free[members]] = _divide(heads[members], shares, seed)
    return torch.from_numpy(part)


def _divide(heads: NDArray[np.int64], shares: tuple[float, float], seed: int) -> NDArray[np.int64]:
    """Assign the images of one class, given the group number of each."""
    names, inverse, sizes = np.unique(heads, return_inverse=True, return_counts=True)
    total = len(heads)
    test = max(round(total * shares[1]), 1) if shares[1] and total >= 2 else 0
    validation = max(round(total * shares[0]), 1) if shares[0] and total >= (3 if shares[1] else 2) else 0
    order = np.argsort(hash64(seed, 0x5917, names), kind="stable")
    before = np.cumsum(sizes[order]) - sizes[order]
    bounds = np.array([total - validation - test, total - test])
    chosen = np.empty(len(names), np.int64)
    chosen[order] = np.searchsorted(bounds, before, side="right")
    if not shares[1]:
        chosen = np.minimum(chosen, VALIDATION)
    return chosen[inverse]
