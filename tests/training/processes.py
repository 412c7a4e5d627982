"""One of several gloo processes, started by torchrun or by the test with RANK and WORLD_SIZE set."""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from convsmith.data.batch import Batch
from convsmith.training import ClassificationTask, checkpoint, fit, rank_and_world
from tests.training import runs

GLOBAL_BATCH = 12
STEPS = 20


def network(norm):
    """Group normalisation, or batch normalisation frozen at its statistics; no dropout."""
    net = runs.network("group" if norm == "group" else "batch", dropout=0.0)
    if norm == "frozen":
        net[1] = FrozenBatchNorm(6)
    return net


class FrozenBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with fixed statistics; scale and shift still learn."""

    def __init__(self, channels):
        super().__init__(channels)
        self.running_mean.fill_(0.1)
        self.running_var.fill_(0.5)

    def train(self, mode=True):
        return super().train(False)


def train(norm, out, rank, world, resume=False, seconds=0.0, **changes):
    task = ClassificationTask(network(norm), 3)
    pixels, labels = runs.images()
    validation = [Batch(pixels - 0.5, labels, torch.arange(len(labels)))]
    loader = runs.loader(GLOBAL_BATCH // world, rank, world, drop_last=True)
    if seconds:
        loader = runs.Slow(loader, seconds)
    settings = {"steps": STEPS, "checkpoint_every": 4, "keep_last": 100, "accumulate": 1, "ema": None, **changes}
    result = fit(task, loader, runs.config(**settings), validation=validation, out=out, resume=resume)
    return task, result


if __name__ == "__main__":
    out = Path(sys.argv[1])
    torch.set_num_threads(1)
    rank, world = rank_and_world()
    for job in sys.argv[2:]:  # norm,accumulate,new|resume|slow
        norm, accumulate, mode = job.split(",")
        folder = out / f"{norm}-{accumulate}-{mode}"
        if mode == "resume" and rank == 0:  # from the eighth step of the run before
            place = checkpoint.path_of(folder, 8)
            place.parent.mkdir(parents=True)
            place.symlink_to(checkpoint.path_of(out / f"{norm}-{accumulate}-new", 8))
        if mode == "resume":
            torch.distributed.barrier()
        seconds = 0.2 if mode == "slow" else 0.0
        task, result = train(norm, folder, rank, world, mode == "resume", seconds, accumulate=int(accumulate))
        if result.interrupted:
            sys.exit(f"stopped at {result.steps}")
        save_file(task.state_dict(), folder / f"final-{rank}.safetensors")
