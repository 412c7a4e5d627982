"""Images a second of the training path, beside torchvision's ImageFolder and torch's DataLoader."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from PIL import Image
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder

from convsmith.data import Loader, Preprocessing, load
from experiments.benchmarks.contract import Bench, suite

BATCH = 32


@suite("loading")
def run(bench: Bench) -> None:
    """One epoch of 500x375 JPEG files through timm's training transform to 224 pixels, with 0 and 2 workers."""
    count = 64 if bench.quick else 256
    with tempfile.TemporaryDirectory() as folder:
        _photographs(Path(folder), count)
        preprocessing = Preprocessing((3, 224, 224))
        without: Any = None  # timm's annotation has no None, its code has
        transform = timm.data.create_transform(**preprocessing.to_json(), is_training=True, color_jitter=without)
        split = load(folder, preprocessing=preprocessing, augment="imagenet").train
        chosen = [int(n) for n in split.index]
        theirs = torch.utils.data.Subset(ImageFolder(folder, transform), chosen)
        for workers in (0, 2):
            ours = Loader(split, BATCH, shuffle=True, augment=True, workers=workers)
            other: DataLoader[torch.Tensor] = DataLoader(
                theirs, BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0
            )

            def convsmith(loader: Loader = ours) -> None:
                assert sum(len(batch) for batch in loader.epoch(0)) == len(split)

            def torchvision(loader: DataLoader[torch.Tensor] = other) -> None:
                assert sum(len(images) for images, _ in loader) == len(split)

            bench.compare(
                f"{len(split)} JPEG files of 500x375 to 224, batch {BATCH}, {workers} workers",
                {"torchvision ImageFolder, DataLoader": torchvision, "convsmith Loader": convsmith},
                baseline="torchvision ImageFolder, DataLoader",
                rounds=15,
                seconds=45,
                settings={"images": len(split), "workers": workers, "batch": BATCH},
                aim="at most 1.05 times the time",
            )


def _photographs(folder: Path, count: int) -> None:
    """Write JPEG files with the detail of photographs, in two classes."""
    draw = np.random.default_rng(0)
    for number in range(count):
        place = folder / "ab"[number % 2]
        place.mkdir(exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 256, (25, 33, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        noise = draw.integers(-12, 13, (375, 500, 3))
        pixels = np.clip(np.asarray(coarse, dtype=np.int64) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(place / f"{number}.jpg", quality=90)
