"""Compressed networks against the original: resnet18 at 64x64, eager and compiled, and the small control, eager."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor

from convsmith.compression import compress, cost
from convsmith.compression.planning.measure import compiled_networks
from experiments.benchmarks.contract import Bench, suite

#: arm -> method, settings; every one keeps half of the MACs, int8 keeps all
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "low rank": ("low-rank", {"keep_macs": 0.5, "data_aware": False}),
    "filters pruned": ("prune-filters", {"keep_macs": 0.5}),
    "filters pruned, multiples of 8": ("prune-filters", {"keep_macs": 0.5, "round_to": 8}),
    "interleaved": ("interleave", {"keep_macs": 0.5, "data_aware": False}),
    "int8": ("int8", {}),
}


#: what is also compiled on resnet18: compiling takes ten seconds a network
COMPILED = ("original", "filters pruned, multiples of 8", "int8")


@suite("compress")
def run(bench: Bench) -> None:
    """Time of inference after every way to compress, beside the original's (weights are random: times only)."""
    torch.manual_seed(0)
    _network(bench, "cs_resnet20", {"num_classes": 10, "in_chans": 1}, (1, 8, 8))
    if not bench.quick:
        _network(bench, "resnet18", {"num_classes": 10, "zero_init_last": False}, (3, 64, 64), COMPILED)
    bench.notes.append("Weights are random: what is compared is time at an equal budget, not accuracy.")


def _network(
    bench: Bench, name: str, kwargs: dict[str, Any], shape: tuple[int, ...], compiled: tuple[str, ...] = ()
) -> None:
    original = timm.create_model(name, **kwargs).eval().requires_grad_(False)
    example = torch.randn(8, *shape)
    ways = {"filters pruned": WAYS["filters pruned"]} if bench.quick else WAYS
    networks = {"original": original}
    for arm, (method, settings) in ways.items():
        networks[arm] = compress(original, method, example=example, **settings).eval()
    full = cost(original, shape).macs
    kept = {arm: round(cost(net, shape).macs / full, 3) for arm, net in networks.items()}
    networks = {arm: net.to(bench.device) for arm, net in networks.items()}
    for batch in (1,) if bench.quick else (1, 32):
        x = torch.randn(batch, *shape, device=bench.device)
        _compare(bench, f"{name}, eager, batch {batch}", dict(networks), x, kept)
        if compiled:
            ready = compiled_networks({arm: networks[arm] for arm in compiled}, x)
            calls = {arm: call for arm, call in ready.items() if not isinstance(call, str)}
            bench.notes += [f"{name}, {arm}: {text}" for arm, text in ready.items() if isinstance(text, str)]
            _compare(bench, f"{name}, compiled, batch {batch}", calls, x, kept)


def _compare(
    bench: Bench, case: str, calls: Mapping[str, Callable[[Tensor], Any]], x: Tensor, kept: Mapping[str, float]
) -> None:
    with torch.no_grad():
        bench.compare(
            case,
            {arm: partial(call, x) for arm, call in calls.items()},
            baseline="original",
            rounds=25,
            seconds=6.0,
            memory=False,
            settings={"MACs kept": {arm: kept[arm] for arm in calls}, "input": list(x.shape)},
            aim="below 1 where MACs fell; int8 below 1 when compiled",
        )
