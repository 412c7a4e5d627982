"""Interleaved pairs against the dense layer and the usual group-and-shuffle pair; IGCV3 against MobileNetV2."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.benchmarks.contract import Bench, suite
from convsmith.compression import InterleavedGroupConv2d, cost, fold_for_inference
from convsmith.compression.backends import candidates, choices, forget_choices

#: (channels, side, batch, primary partitions L, members M)
PAIRS = (
    (256, 28, 8, 16, 16),
    (256, 28, 8, 64, 4),
    (1024, 14, 8, 32, 32),
    (1024, 14, 8, 512, 2),
)
LAYOUTS = {"channels first": torch.contiguous_format, "channels last": torch.channels_last}


def naive_pair(x: Tensor, chain: InterleavedGroupConv2d) -> Tensor:
    """Run what public implementations run: group convolution, reshape-transpose shuffle, twice."""
    first, second = chain.weights
    x = F.conv2d(x, first, groups=chain.primary)
    x = _shuffle(x, chain.primary)
    x = F.conv2d(x, second, groups=chain.members)
    return _shuffle(x, chain.members)


def _shuffle(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.shape
    if x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous():
        grid = x.permute(0, 2, 3, 1).reshape(batch, height, width, groups, channels // groups)
        return grid.transpose(3, 4).reshape(batch, height, width, channels).permute(0, 3, 1, 2)
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).reshape(x.shape)


@suite("interleaved")
def run(bench: Bench) -> None:
    """Pairs of 1x1 factors per backend, and whole IGCV3-D 1.0 against timm's MobileNetV2 1.0, inference."""
    torch.manual_seed(0)
    with torch.no_grad():
        for channels, side, batch, primary, members in PAIRS[:1] if bench.quick else PAIRS:
            for layout in LAYOUTS:
                _pair(bench, channels, side, batch, primary, members, layout)
        for batch in (1,) if bench.quick else (1, 32):
            _networks(bench, batch)


def _pair(bench: Bench, channels: int, side: int, batch: int, primary: int, members: int, layout: str) -> None:
    chain = InterleavedGroupConv2d(primary, members, 1, device=bench.device).requires_grad_(False)
    x = torch.randn(batch, channels, side, side, device=bench.device)
    first, last = x, x.contiguous(memory_format=torch.channels_last)
    x = first if layout == "channels first" else last
    dense = chain.to_dense().requires_grad_(False)
    dense_last = chain.to_dense().requires_grad_(False).to(memory_format=torch.channels_last)
    torch.testing.assert_close(naive_pair(x, chain), chain(x), rtol=1e-3, atol=1e-3)
    arms: dict[str, Callable[[], Any]] = {
        "group convolutions and shuffles": lambda: naive_pair(x, chain),
        "dense 1x1, channels first": lambda: dense(first),
        "dense 1x1, channels last": lambda: dense_last(last),
    }
    for name in candidates(x, chain):
        arms[f"ours, {name}"] = _forced(primary, members, chain, name, x)
    forget_choices()
    chain(x)
    chosen = next(iter(choices().values()))
    arms["ours, auto"] = lambda: chain(x)
    bench.compare(
        f"pair of 1x1, C={channels} (L={primary}, M={members}), {side}x{side}, batch {batch}, {layout}",
        arms,
        baseline="group convolutions and shuffles",
        rounds=15,
        seconds=4,
        memory=False,
        settings={
            "auto chose": chosen,
            "MACs": cost(chain, (batch, channels, side, side)).macs,
            "dense MACs": cost(dense, (batch, channels, side, side)).macs,
        },
        aim="at least 8 times faster than group convolutions and shuffles, and faster than the dense layer",
    )


def _forced(primary: int, members: int, chain: nn.Module, backend: str, x: Tensor) -> Callable[[], Tensor]:
    other = InterleavedGroupConv2d(primary, members, 1, backend=backend, device=x.device).requires_grad_(False)
    other.load_state_dict(chain.state_dict())
    return lambda: other(x)


def _networks(bench: Bench, batch: int) -> None:
    x = torch.randn(batch, 3, 224, 224, device=bench.device)
    last = x.contiguous(memory_format=torch.channels_last)
    arms: dict[str, Callable[[], Any]] = {}
    settings: dict[str, Any] = {"batch": batch}
    for label, name in (("MobileNetV2 1.0 of timm", "mobilenetv2_100"), ("IGCV3-D 1.0", "igcv3_d_100")):
        model = timm.create_model(name).to(bench.device).eval().requires_grad_(False)
        settings[f"{label} MACs"] = cost(model, (3, 224, 224)).macs
        as_is = timm.create_model(name).to(bench.device).eval().requires_grad_(False)
        as_last = timm.create_model(name).to(bench.device).eval().requires_grad_(False)
        as_last = as_last.to(memory_format=torch.channels_last)
        whole = fold_for_inference(model, in_pieces=False)
        pieces = fold_for_inference(model)
        torch.testing.assert_close(pieces(last), model(x), rtol=1e-2, atol=1e-2)
        if batch == 1:
            arms[f"{label}, channels first"] = _calling(as_is, x)
        arms[f"{label}, channels last"] = _calling(as_last, last)
        arms[f"{label}, folded"] = _calling(whole, last)
        if batch > 1:
            arms[f"{label}, folded, in pieces"] = _calling(pieces, last)
    bench.compare(
        f"whole networks, 224x224, batch {batch}, inference",
        arms,
        baseline="MobileNetV2 1.0 of timm, channels last",
        rounds=15,
        warmup=1 if batch > 1 else 3,
        seconds=15,
        memory=False,
        settings=settings,
        aim="IGCV3-D folded at most 1.2 times MobileNetV2 as timm runs it",
    )


def _calling(model: nn.Module, x: Tensor) -> Callable[[], Tensor]:
    return lambda: model(x)
