"""Small folders of pictures, written by the tests that read them."""

import numpy as np
from PIL import Image


def picture(path, *, size=(10, 12), mode="RGB", seed=0):
    """Write one random picture of (height, width) and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = {"L": 1, "LA": 2, "RGB": 3, "RGBA": 4}[mode]
    values = np.random.default_rng(seed).integers(0, 256, (*size, channels), dtype=np.uint8)
    Image.fromarray(values[..., 0] if channels == 1 else values, mode).save(path)
    return path


def folder(root, *, classes=("cat", "dog"), count=10, suffix=".png", **settings):
    """Write ``count`` pictures of each class, all different, and return the folder."""
    for c, name in enumerate(classes):
        for n in range(count):
            picture(root / name / f"{n:02d}{suffix}", seed=1000 * c + n + sum(map(ord, root.name)), **settings)
    return root
