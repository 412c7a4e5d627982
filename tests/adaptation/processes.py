"""One of several gloo processes that adapt together; the test starts them with RANK and WORLD_SIZE set."""

import gc
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from convsmith.adaptation import METHODS, method_settings
from convsmith.adaptation.methods.method import Domains
from convsmith.data import Loader
from convsmith.training import TrainConfig, fit, rank_and_world
from tests.adaptation.worlds import K, loader, network, world

GLOBAL_BATCH, STEPS = 12, 10
# no dropout: each process draws masks of its own
JOBS = {
    "dan": {},
    "dann": {"hidden": (6,), "dropout": 0.0},
    "san": {"hidden": (6,), "dropout": 0.0, "every": 3, "warmup": 0.3, "entropy": 0.5},
    "san-caffe": {"hidden": (6,), "dropout": 0.0, "variant": "caffe"},
    "san-pytorch": {"hidden": (6,), "dropout": 0.0, "variant": "pytorch"},
}


def train(job, rank, of):
    """Train ten steps and return the task."""
    source, target = world()
    method = job.split("-")[0]
    both = loader(source, target, batch=GLOBAL_BATCH // of).sharded(rank, of)
    whole = Loader(target.without_labels(), 8).sharded(rank, of)
    domains = Domains(Loader(source, 64), whole, K, STEPS)
    torch.manual_seed(5)
    task = METHODS[method](network(), domains, method_settings(method, JOBS[job]))
    fit(task, both, TrainConfig(steps=STEPS, lr=0.1, nesterov=False, schedule="inverse", device="cpu"))
    return task


if __name__ == "__main__":
    torch.set_num_threads(1)
    mine, of = rank_and_world()
    for job in JOBS:
        save_file(train(job, mine, of).state_dict(), Path(sys.argv[1]) / f"{job}-{mine}.safetensors")
    # a process that leaves while the other still talks to it can abort in gloo's own thread
    torch.distributed.barrier()
    gc.collect()  # lets go of DistributedDataParallel, which holds the group
    torch.distributed.destroy_process_group()
