"""Interleaved 1x1 pairs against the dense layer and the usual group-and-shuffle pair.

Large tensors cost page faults where the C library gives freed memory back to the system, and whether it does depends on
what was allocated before. Every pair is therefore measured twice: as a process finds it, and in a second process that
keeps its pages; the faults of a call are recorded.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.compression import InterleavedGroupConv2d, cost
from convsmith.compression.operators.backends import BACKENDS, rule
from experiments.benchmarks.contract import Bench, Case, Timing, quartiles, suite

try:
    import resource
except ImportError:  # not a Unix
    resource = None  # type: ignore[assignment]

#: (channels, side, batch, primary partitions L, members M)
PAIRS = (
    (256, 28, 8, 16, 16),
    (256, 28, 8, 64, 4),
    (1024, 14, 8, 32, 32),
    (1024, 14, 8, 512, 2),
)
#: channels and their members M in the grid that the rule's constants come from
GRID = {32: 4, 64: 8, 128: 8, 256: 16, 512: 16, 1024: 32}
SIDES = (4, 7, 14, 28, 56)
MOST_BYTES = 1 << 25
#: environment of a process whose C library keeps freed pages (glibc's names; others ignore them)
KEEP_PAGES = {"MALLOC_MMAP_THRESHOLD_": str(1 << 25), "MALLOC_TRIM_THRESHOLD_": str(1 << 32)}
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
    """Pairs of 1x1 factors per backend, and what ``auto`` makes of them, inference."""
    torch.manual_seed(0)
    run_pairs(bench)
    if bench.device.type == "cpu":
        bench.cases += _in_another_process(bench)
        bench.cases += _in_another_process(bench, "first_calls", {})
        run_grid(bench)


def run_pairs(bench: Bench) -> None:
    """Measure the pairs in both layouts, with the memory behaviour this process has."""
    with torch.no_grad():
        for channels, side, batch, primary, members in PAIRS[:1] if bench.quick else PAIRS:
            for layout in LAYOUTS:
                _pair(bench, channels, side, batch, primary, members, layout)


def run_grid(bench: Bench) -> None:
    """Measure every backend over channels and sides, and how much slower than the fastest the rule's choice is."""
    for channels, members in list(GRID.items())[:1] if bench.quick else GRID.items():
        for side in SIDES:
            x = torch.randn(8, channels, side, side, device=bench.device)
            if x.numel() * x.element_size() > MOST_BYTES:
                continue
            chain = InterleavedGroupConv2d(channels // members, members, 1, device=bench.device).requires_grad_(False)
            for layout, form in LAYOUTS.items():
                images = x.contiguous(memory_format=form)
                arms = {name: _forced(chain.primary, members, chain, name, images) for name in BACKENDS}
                with torch.no_grad():
                    case = bench.compare(
                        f"backends, C={channels}, {side}x{side}, batch 8, {layout}",
                        arms,
                        baseline="group",
                        rounds=7,
                        warmup=2,
                        seconds=0.5,
                        memory=False,
                        aim="the rule's choice is the fastest",
                    )
                chosen = rule(images, chain)
                ratio = case.arms[chosen].median / min(timing.median for timing in case.arms.values())
                bench.cases[-1] = replace(case, settings={"auto is": chosen, "times the fastest": round(ratio, 3)})


def first_calls(bench: Bench) -> None:
    """Time the first call of each pair at its shape against the later ones, in a process that ran another shape."""
    with torch.no_grad():
        InterleavedGroupConv2d(4, 4, 1)(torch.randn(2, 16, 8, 8))
        for channels, side, batch, primary, members in PAIRS:
            chain, x = InterleavedGroupConv2d(primary, members, 1), torch.randn(batch, channels, side, side)
            seconds = [bench._seconds(partial(chain, x), 1) for _ in range(21)]
            arms = {
                name: Timing(q2, q1, q3, n)
                for name, (q1, q2, q3), n in (
                    ("later calls", quartiles(seconds[1:]), 20),
                    ("first call", quartiles(seconds[:1]), 1),
                )
            }
            ratios = {name: (timing.median / arms["later calls"].median,) * 3 for name, timing in arms.items()}
            name = f"first call at a shape, C={channels} (L={primary}, M={members}), {side}x{side}, batch {batch}"
            bench.cases.append(Case(name, "later calls", arms, ratios, aim="at most 3 times a later call"))


def _in_another_process(
    bench: Bench, function: str = "run_pairs", environment: Mapping[str, str] = KEEP_PAGES
) -> list[Case]:
    """Run one function of this file in a process of its own, by default one that keeps freed pages."""
    program = (
        "import json, sys, torch\n"
        "from dataclasses import asdict\n"
        "from experiments.benchmarks.contract import Bench\n"
        "from experiments.benchmarks import interleaved\n"
        f"torch.set_num_threads({torch.get_num_threads()})\n"
        "torch.manual_seed(0)\n"
        f"bench = Bench(quick={bench.quick})\n"
        f"interleaved.{function}(bench)\n"
        "json.dump([asdict(case) for case in bench.cases], sys.stdout)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **environment, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    cases = []
    for value in json.loads(done.stdout):
        arms = {name: Timing(**timing) for name, timing in value.pop("arms").items()}
        ratios = {name: tuple(three) for name, three in value.pop("ratios").items()}
        cases.append(Case(arms=arms, ratios=ratios, **value))  # type: ignore[arg-type]
    return cases


def _pair(bench: Bench, channels: int, side: int, batch: int, primary: int, members: int, layout: str) -> None:
    kept = all(os.environ.get(name) == value for name, value in KEEP_PAGES.items())
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
    for name in BACKENDS:
        arms[f"ours, {name}"] = _forced(primary, members, chain, name, x)
    arms["ours, auto"] = lambda: chain(x)
    faults: dict[str, list[int]] = {name: [] for name in arms}
    bench.compare(
        f"pair of 1x1, C={channels} (L={primary}, M={members}), {side}x{side}, batch {batch}, {layout}"
        + (", pages kept" if kept else ""),
        {name: _counting(arm, faults[name]) for name, arm in arms.items()},
        baseline="group convolutions and shuffles",
        rounds=15,
        seconds=2,
        memory=False,
        settings={
            "auto is": rule(x, chain),
            "MACs": cost(chain, (batch, channels, side, side)).macs,
            "dense MACs": cost(dense, (batch, channels, side, side)).macs,
            "freed pages are": "kept" if kept else "as the C library decides",
        },
        aim="at least 3 times faster than group convolutions and shuffles, and faster than the dense layer",
    )

    case = bench.cases[-1]
    two = [_median(faults[name]) for name in (case.baseline, "ours, auto")]
    bench.cases[-1] = replace(
        case, settings={**case.settings, "page faults of a call": f"{two[0]} (baseline), {two[1]} (auto)"}
    )


def _counting(arm: Callable[[], Any], faults: list[int]) -> Callable[[], Any]:
    """Return ``arm`` with the page faults of every call noted."""

    def counted() -> Any:
        before = _faults()
        result = arm()
        faults.append(_faults() - before)
        return result

    return counted


def _faults() -> int:
    """Return the page faults of this process so far; 0 where the system does not tell."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt if resource is not None else 0


def _median(values: list[int]) -> int:
    return int(statistics.median(values)) if values else 0


def _forced(primary: int, members: int, chain: nn.Module, backend: str, x: Tensor) -> Callable[[], Tensor]:
    other = InterleavedGroupConv2d(primary, members, 1, backend=backend, device=x.device).requires_grad_(False)
    other.load_state_dict(chain.state_dict())
    return lambda: other(x)
