"""Half the latency in ONNX Runtime, and int8 there: ResNet-18, ResNet-50 and EfficientNet-Lite0 against themselves."""

from __future__ import annotations

from functools import partial
from typing import Any

import timm
import torch

from convsmith.compression import compress, cost, plan_compression
from convsmith.compression.runtimes import runnable
from convsmith.errors import InvalidArgument
from experiments.benchmarks.contract import Bench, suite

#: network -> height and width of its images
NETWORKS = {"resnet18": 224, "tf_efficientnet_lite0": 224, "resnet50": 224}
KEEP, RUNTIME, BATCH = 0.5, "onnxruntime", 2


@suite("latency")
def run(bench: Bench) -> None:
    """Time filters pruned to half the latency, and int8, in ONNX Runtime (weights are random: times only)."""
    for name, side in {"resnet18": 64}.items() if bench.quick else NETWORKS.items():
        torch.manual_seed(0)
        options: dict[str, Any] = {"zero_init_last": False} if "resnet" in name else {}
        model = timm.create_model(name, **options).eval()
        example = torch.randn(BATCH, 3, side, side)
        made = {"original": model}
        try:
            plan = plan_compression(
                model, "prune-filters", example=example, keep_latency=KEEP, runtime=RUNTIME, round_to=8
            )
            made["filters pruned"] = compress(model, "prune-filters", example=example, plan=plan, reconstruct=False)
        except InvalidArgument as error:
            bench.notes.append(f"{name}, filters pruned: {error}")
        made["int8"] = compress(model, "int8", example=example)
        whole = cost(model, (3, side, side)).macs
        kept = {arm: round(cost(net, (3, side, side)).macs / whole, 3) for arm, net in made.items()}
        arms = {arm: partial(runnable(net, example, RUNTIME), example) for arm, net in made.items()}
        bench.compare(
            f"{name}, batch {BATCH}",
            arms,
            baseline="original",
            rounds=25,
            seconds=25.0,
            memory=False,
            settings={"MACs kept": kept, "input": list(example.shape), "threads": torch.get_num_threads()},
            aim="filters pruned 0.45 to 0.55; int8 at most 0.6 with VNNI, never above 1.0",
        )
    bench.notes.append(
        "The plan is searched by timing whole networks in ONNX Runtime; weights are random, so only times are compared."
    )
