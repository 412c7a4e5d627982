"""What the training loop costs beside the same steps written by hand."""

from __future__ import annotations

import math

import timm
import torch
from torch.nn.functional import cross_entropy

from convsmith.data import Loader, load
from convsmith.training import ClassificationTask, TrainConfig, fit
from experiments.benchmarks.contract import Bench, suite


@suite("training")
def run(bench: Bench) -> None:
    """Overhead of the loop per step: cs_resnet20 on digits, batches of 64, against a plain PyTorch loop."""
    steps = 20 if bench.quick else 100
    split = load("digits").train
    device = bench.device

    def bare() -> None:
        torch.manual_seed(0)
        model = timm.create_model("cs_resnet20", in_chans=1, num_classes=10).to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4)
        loader = Loader(split, 64, seed=0, shuffle=True)
        done = 0
        while done < steps:
            for batch in loader.epoch(done // len(loader)):
                loss = cross_entropy(model(batch.images.to(device)), batch.labels.to(device))
                if device.type == "cpu" and not math.isfinite(loss.item()):
                    raise ArithmeticError("the loss is not finite")
                loss.backward()
                for group in optimizer.param_groups:
                    group["lr"] = 0.05 * (1 + math.cos(math.pi * done / steps))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                done += 1
                if done == steps:
                    break

    def ours() -> None:
        torch.manual_seed(0)
        task = ClassificationTask(timm.create_model("cs_resnet20", in_chans=1, num_classes=10), 10)
        config = TrainConfig(steps=steps, lr=0.1, seed=0, device=str(device), decay_all=True, precision="fp32")
        fit(task, Loader(split, 64, seed=0, shuffle=True), config)

    bench.compare(
        f"{steps} steps of cs_resnet20 on 8x8 digits, batch 64",
        {"bare PyTorch": bare, "convsmith.training.fit": ours},
        baseline="bare PyTorch",
        rounds=11,
        seconds=90,
        settings={"steps": steps, "batch": 64, "precision": "float32"},
        aim="at most 1.03 times the bare loop, start-up included",
    )
