"""Compressed networks against the original: resnet18 at 64x64 and the small control, eager and compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import timm
import torch
from torch import Tensor, nn

from convsmith.benchmarks.contract import Bench, suite
from convsmith.compression import compress, cost

#: arm -> method, settings; every one keeps half of the MACs, int8 keeps all
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "low rank": ("low-rank", {"keep_macs": 0.5}),
    "filters pruned": ("prune-filters", {"keep_macs": 0.5}),
    "filters pruned, multiples of 8": ("prune-filters", {"keep_macs": 0.5, "round_to": 8}),
    "interleaved": ("interleave", {"keep_macs": 0.5, "data_aware": False}),
    "int8": ("int8", {}),
}


@suite("compress")
def run(bench: Bench) -> None:
    """Time of inference after every way to compress, beside the original's (weights are random: times only)."""
    torch.manual_seed(0)
    _network(bench, "cs_resnet20", {"num_classes": 10, "in_chans": 1}, (1, 8, 8))
    if not bench.quick:
        _network(bench, "resnet18", {"num_classes": 10, "zero_init_last": False}, (3, 64, 64))
    bench.notes.append("Weights are random: what is compared is time at an equal budget, not accuracy.")


def _network(bench: Bench, name: str, kwargs: dict[str, Any], shape: tuple[int, ...]) -> None:
    original = timm.create_model(name, **kwargs).eval().requires_grad_(False)
    example = torch.randn(16, *shape)
    ways = {"filters pruned": WAYS["filters pruned"]} if bench.quick else WAYS
    networks = {"original": original}
    for arm, (method, settings) in ways.items():
        networks[arm] = compress(original, method, example=example, **settings).eval()
    full = cost(original, shape).macs
    kept = {arm: round(cost(net, shape).macs / full, 3) for arm, net in networks.items()}
    for batch in (1,) if bench.quick else (1, 32):
        x = torch.randn(batch, *shape, device=bench.device)
        for kind in ("eager",) if bench.quick else ("eager", "compiled"):
            with torch.no_grad():
                arms: dict[str, Callable[[], Any]] = {
                    arm: partial(_ready(net.to(bench.device), x, kind), x) for arm, net in networks.items()
                }
                bench.compare(
                    f"{name}, {kind}, batch {batch}",
                    arms,
                    baseline="original",
                    memory=False,
                    settings={"MACs kept": kept, "input": [batch, *shape]},
                    aim="below 1 where MACs fell; int8 below 1 when compiled",
                )


def _ready(network: nn.Module, x: Tensor, kind: str) -> Callable[[Tensor], Any]:
    if kind == "eager":
        return network
    import torch._inductor.config as inductor

    torch.compiler.reset()
    fast = torch.compile(copy.deepcopy(network), dynamic=False)
    with inductor.patch(freezing=True):
        fast(x)
    return fast
