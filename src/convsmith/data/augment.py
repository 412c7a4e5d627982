"""Random changes of training images: transforms of timm and torchvision, made functions of a key by one wrapper."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from convsmith.data.preprocessing import Pipeline, Preprocessing
from convsmith.errors import InvalidArgument
from convsmith.registry import Registry

#: name to ``f(preprocessing, **settings) -> Pipeline``
AUGMENTATIONS: Registry[Callable[..., Pipeline]] = Registry("augmentation", "convsmith.data")


@contextmanager
def kept_random_states() -> Iterator[None]:
    """Put back the global generators of Python, numpy and torch (CPU) that libraries' transforms draw from."""
    python, numpy, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_state)


def keyed(transform: Pipeline, image: Image.Image | Tensor, word: int) -> Tensor:
    """Apply a random transform to an upright image as a function of a 64-bit word: the hash of its key."""
    random.seed(word)
    np.random.seed(word % 2**32)  # noqa: NPY002  (timm draws from the global generators)
    torch.default_generator.manual_seed(word)  # torch.manual_seed would reach for the devices too
    return transform.apply(image)


def _after_resize(preprocessing: Preprocessing, name: str, steps: list[Any], settings: dict[str, Any]) -> Pipeline:
    if settings:
        hint = "augment imagenet takes timm's settings"
        raise InvalidArgument(f"augmentation {name} has no settings", argument=next(iter(settings)), hint=hint)
    plain = preprocessing.transform()
    return Pipeline([*plain.steps[: plain.tensor_at], *steps, *plain.steps[plain.tensor_at :]], plain.channels)


@AUGMENTATIONS.register("none")
def none(preprocessing: Preprocessing, **settings: Any) -> Pipeline:
    """No change."""
    return _after_resize(preprocessing, "none", [], settings)


@AUGMENTATIONS.register("digits")
def digits(preprocessing: Preprocessing, **settings: Any) -> Pipeline:
    """Shift by up to 6 % of the side, rotate by up to 10 degrees, scale by 0.9 to 1.1; black outside."""
    from torchvision.transforms import InterpolationMode, RandomAffine

    affine = RandomAffine(10, (0.06, 0.06), (0.9, 1.1), None, InterpolationMode.BILINEAR)
    return _after_resize(preprocessing, "digits", [affine], settings)


@AUGMENTATIONS.register("flip-crop")
def flip_crop(preprocessing: Preprocessing, **settings: Any) -> Pipeline:
    """Pad by 4 black pixels, cut back to the size at a random place, mirror half of the images (the CIFAR recipe)."""
    from torchvision.transforms import RandomCrop, RandomHorizontalFlip

    steps = [RandomCrop(preprocessing.input_size[1:], padding=4), RandomHorizontalFlip()]
    return _after_resize(preprocessing, "flip-crop", steps, settings)


@AUGMENTATIONS.register("imagenet")
def imagenet(preprocessing: Preprocessing, **settings: Any) -> Pipeline:
    """Random resized crop and mirror of timm's training transform, and what ``settings`` add by timm's names.

    An area average ("box", images in memory) is no way to enlarge a crop: it becomes "bilinear" here.
    """
    way = "bilinear" if preprocessing.interpolation == "box" else preprocessing.interpolation
    return preprocessing.train_transform(**{"color_jitter": None, "interpolation": way, **settings})
