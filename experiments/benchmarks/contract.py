"""What every benchmark suite shares: arms measured in turn in one process, medians with quartiles, strict JSON."""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from convsmith.errors import InvalidArgument
from convsmith.files import write_json
from convsmith.registry import Registry
from convsmith.report.machine import conditions
from experiments.benchmarks.memory import peak_bytes

SUITES: Registry[Callable[[Bench], None]] = Registry("benchmark suite", "experiments.benchmarks")
suite = SUITES.register


@dataclass(frozen=True)
class Timing:
    """Seconds of one call: median, quartiles, number of counted calls; ``peak_bytes`` of tensors made inside a call."""

    median: float
    q1: float
    q3: float
    calls: int
    peak_bytes: int | None = None


@dataclass(frozen=True)
class Case:
    """One comparison. ``ratios[arm]`` is the arm's time over the baseline's, round by round (below 1: faster)."""

    name: str
    baseline: str
    arms: Mapping[str, Timing]
    ratios: Mapping[str, tuple[float, float, float]]
    settings: Mapping[str, Any] = field(default_factory=dict)
    aim: str = ""


def quartiles(values: list[float]) -> tuple[float, float, float]:
    """Return (first quartile, median, third quartile) by linear interpolation."""
    ordered = sorted(values)

    def at(share: float) -> float:
        place = share * (len(ordered) - 1)
        low = math.floor(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return at(0.25), at(0.5), at(0.75)


class Bench:
    """Collects the cases of one suite.

    Args:
        quick: few rounds, for tests; the numbers are marked as quick in the JSON.
        device: where tensors of the suite live; timings on CUDA synchronise.
        progress: called with (cases done, 0, note).
    """

    def __init__(
        self,
        *,
        quick: bool = False,
        device: str | torch.device = "cpu",
        progress: Callable[[int, int, str], None] | None = None,
    ) -> None:
        self.quick, self.device, self.progress = quick, torch.device(device), progress
        self.cases: list[Case] = []
        self.notes: list[str] = []

    def compare(
        self,
        name: str,
        arms: Mapping[str, Callable[[], Any]],
        *,
        baseline: str,
        rounds: int = 15,
        warmup: int = 3,
        seconds: float = 20.0,
        memory: bool = True,
        settings: Mapping[str, Any] | None = None,
        aim: str = "",
    ) -> Case:
        """Measure ``arms`` in turn, A B A B, after a warm-up of each.

        Stops after ``rounds`` rounds or ``seconds`` seconds, whichever comes first, never with fewer than three rounds.
        Short calls are repeated inside a round until they fill about 5 ms, so the clock's grain does not matter.
        """
        if baseline not in arms:
            raise InvalidArgument("the baseline must be one of the arms", argument=baseline, given=list(arms))
        if self.quick:
            rounds, warmup, seconds = 3, 1, 2.0
        repeats = {}
        for arm, call in arms.items():
            for _ in range(warmup):
                call()
            repeats[arm] = max(1, math.ceil(0.005 / max(self._seconds(call, 1), 1e-7)))
        times: dict[str, list[float]] = {arm: [] for arm in arms}
        gc.collect()
        gc.disable()
        begin = time.perf_counter()
        try:
            for count in range(rounds):
                for arm, call in arms.items():
                    times[arm].append(self._seconds(call, repeats[arm]))
                if count >= 2 and time.perf_counter() - begin > seconds:
                    break
        finally:
            gc.enable()
        timings, ratios = {}, {}
        for arm, call in arms.items():
            q1, median, q3 = quartiles(times[arm])
            peak = peak_bytes(call, self.device) if memory else None
            timings[arm] = Timing(median, q1, q3, len(times[arm]) * repeats[arm], peak)
            ratios[arm] = quartiles([a / b for a, b in zip(times[arm], times[baseline], strict=True)])
        case = Case(name, baseline, timings, ratios, dict(settings or {}), aim)
        self.cases.append(case)
        if self.progress:
            self.progress(len(self.cases), 0, name)
        return case

    def _seconds(self, call: Callable[[], Any], repeats: int) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        begin = time.perf_counter()
        for _ in range(repeats):
            call()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return (time.perf_counter() - begin) / repeats

    def to_json(self, suite_name: str) -> dict[str, Any]:
        """Return the suite's result with the conditions it was measured under."""
        return {
            "schema": 1,
            "suite": suite_name,
            "quick": self.quick,
            "conditions": conditions(self.device),
            "cases": [asdict(case) for case in self.cases],
            "notes": list(self.notes),
        }


def run_suite(
    name: str,
    *,
    quick: bool = False,
    device: str = "cpu",
    threads: int | None = None,
    results: Path | None = None,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Run one suite and return its JSON; with ``results`` also write `file_stem` + ``.json`` there."""
    entry = SUITES.entry(name)
    before = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        bench = Bench(quick=quick, device=device, progress=progress)
        entry.value(bench)
        value = bench.to_json(name)
    finally:
        torch.set_num_threads(before)
    if results is not None:
        results.mkdir(parents=True, exist_ok=True)
        write_json(results / f"{file_stem(value)}.json", value)
    return value


def file_stem(value: Mapping[str, Any]) -> str:
    """Return ``<suite>--<machine>--<device>-<CPU capability>`` (``--quick``): one file a place and suite."""
    where = value["conditions"]
    parts = [value["suite"], where["machine"], f"{where['device']}-{where['capability']}"]
    return "--".join(parts + (["quick"] if value["quick"] else []))
