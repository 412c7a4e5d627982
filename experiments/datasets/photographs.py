"""Sample photographs inside the wheels of scikit-image and scikit-learn, and crops of them.

Licences: scikit-image's `data/README.txt` names each picture's (CC0, CC BY or public domain); scikit-learn's two are
CC BY 2.0 (Tore Urnes, Yann Forget). They are read from the installed packages and never copied.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources

import torch
from PIL import Image

from convsmith.errors import require

#: scikit-image's photographs of things and places (textures, slides and text pages left out)
_SKIMAGE = (
    "astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg",
    "motorcycle_left.png", "motorcycle_right.png", "rocket.jpg", "retina.jpg", "brick.png", "grass.png", "gravel.png",
)  # fmt: skip
_SKLEARN = ("china.jpg", "flower.jpg")


def photographs() -> dict[str, Image.Image]:
    """Return every sample photograph by name, RGB, largest side at most 512 pixels."""
    require("skimage", "demo")
    found = {}
    for package, names in (("skimage.data", _SKIMAGE), ("sklearn.datasets.images", _SKLEARN)):
        for name in names:
            with resources.as_file(resources.files(package).joinpath(name)) as path, Image.open(path) as image:
                picture = image.convert("RGB")
            picture.thumbnail((512, 512), Image.Resampling.BICUBIC)
            found[name.split(".")[0]] = picture
    return found


def crops(pictures: Sequence[Image.Image], count: int, *, seed: int, least: float = 0.4) -> list[Image.Image]:
    """Return ``count`` random crops, the pictures in turn, each side between ``least`` and all of the picture's.

    Give the pictures of one side of a split only: crops of one photograph never stand on both sides.
    """
    generator = torch.Generator().manual_seed(seed)
    found = []
    for number in range(count):
        picture = pictures[number % len(pictures)]
        share = least + (1 - least) * float(torch.rand((), generator=generator))
        width, height = (max(8, round(side * share)) for side in picture.size)
        left = int(torch.randint(picture.width - width + 1, (), generator=generator))
        top = int(torch.randint(picture.height - height + 1, (), generator=generator))
        crop = picture.crop((left, top, left + width, top + height))
        if bool(torch.rand((), generator=generator) < 0.5):
            crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        found.append(crop)
    return found
