"""A small run that the resume and process tests start as programs of their own."""

import sys
import time
from pathlib import Path

import torch
from torch import nn

from convsmith.data import Loader, from_arrays
from convsmith.data.batch import Batch
from convsmith.training import ClassificationTask, TrainConfig, fit

STEPS = 24


def images(count=44, classes=3, size=6):
    g = torch.Generator().manual_seed(3)
    labels = torch.randint(classes, (count,), generator=g)
    return torch.rand(count, 1, size, size, generator=g), labels


#: what a recipe for photographs changes: RandAugment, erasing, mixup and CutMix, worker processes
RECIPE = {"auto_augment": "rand-m9-mstd0.5-inc1", "re_prob": 0.5, "color_jitter": 0.2, "scale": (0.5, 1.0)}
MIXUP = {"mixup_alpha": 0.4, "cutmix_alpha": 1.0, "label_smoothing": 0.1}


def loader(batch_size=8, rank=0, world=1, recipe=False, **options):
    pixels, labels = images()
    split = from_arrays(pixels, labels)
    if recipe:
        split = from_arrays((pixels * 255).byte(), labels).with_augment("imagenet", **RECIPE)
        options = {"augment": True, "mixup": MIXUP, "drop_last": True, "workers": 2, **options}
    return Loader(split, batch_size, seed=4, shuffle=True, rank=rank, world=world, **options)


def network(norm="batch", dropout=0.2, seed=2):
    torch.manual_seed(seed)
    layer = nn.BatchNorm2d(6) if norm == "batch" else nn.GroupNorm(2, 6)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, bias=False), layer, nn.ReLU(), nn.Dropout(dropout), nn.Flatten(), nn.Linear(96, 3)
    )


def config(**changes):
    settings = {
        "steps": STEPS,
        "lr": 0.05,
        "device": "cpu",
        "warmup_steps": 4,
        "clip": 1.0,
        "accumulate": 2,
        "ema": 0.9,
        "seed": 7,
        "checkpoint_every": 1,
        "evaluate_every": 5,
        "patience": 50,
        "log_every": 4,
    }
    return TrainConfig(**{**settings, **changes})


class Slow(list):
    """Batches that take a while, so that a kill can hit any place of a step."""

    def __init__(self, source, seconds):
        super().__init__(range(len(source)))
        self.source, self.seconds = source, seconds

    def epoch(self, epoch, start=0):
        for batch in self.source.epoch(epoch, start):
            time.sleep(self.seconds)
            yield batch


def train(out, resume, seconds=0.0, recipe=False, **changes):
    task = ClassificationTask(network(), 3)
    pixels, labels = images()
    validation = [Batch(pixels - 0.5, labels, torch.arange(len(labels)))]
    batches = Slow(loader(recipe=recipe), seconds)
    result = fit(task, batches, config(**changes), validation=validation, out=out, resume=resume)
    return task, result


if __name__ == "__main__":
    folder, resume, seconds, optimizer = Path(sys.argv[1]), sys.argv[2] == "resume", float(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    _, done = train(folder, resume, seconds, recipe="recipe" in sys.argv[5:], optimizer=optimizer)
    sys.exit(130 if done.interrupted else 0)
