"""``python -m experiments bench``: time ours against plain and published algorithms, side by side in one run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.options import Listing, option
from convsmith.errors import InvalidArgument

EXAMPLES = ("bench", "bench cold-start --quick", "bench pooling --threads 2 --out results/benchmarks")


@dataclass(frozen=True, kw_only=True)
class Arguments(Listing):
    """Measure one suite (or all), every arm in turn with its baseline; without a suite, list them."""

    suite: str | None = option(None, "a suite's name, or all", positional=True, metavar="SUITE")
    quick: bool = option(False, "three rounds a case, to see that it runs; the numbers are marked as quick")
    threads: int | None = option(None, "threads to pin (default: torch's own number)", metavar="N")
    device: str = option("cpu", "cpu, cuda, cuda:N", metavar="NAME")
    out: str = option("results/benchmarks", "folder for the JSON", metavar="DIR")


def run(arguments: Arguments) -> dict[str, Any]:
    """Run suites, print their tables, write their JSON."""
    from convsmith.training import resolve_device
    from experiments import benchmarks

    if arguments.suite is None:
        terminal.table(["suite", "what"], [[entry.name, entry.summary] for entry in benchmarks.SUITES])
        return {"suites": benchmarks.SUITES.names()}
    names = benchmarks.SUITES.names() if arguments.suite == "all" else [benchmarks.SUITES.entry(arguments.suite).name]
    if arguments.threads is not None and arguments.threads < 1:
        raise InvalidArgument("there must be at least one thread", argument="--threads", given=arguments.threads)
    resolve_device(arguments.device)
    return {"suites": {name: _one(name, arguments) for name in names}}


def _one(name: str, arguments: Arguments) -> dict[str, Any]:
    from convsmith.cli.shell.progress import progress
    from experiments import benchmarks

    with progress(name) as callback:
        value = benchmarks.run_suite(
            name,
            quick=arguments.quick,
            device=arguments.device,
            threads=arguments.threads,
            results=Path(arguments.out),
            progress=callback,
        )
    rows = [
        [
            case["name"],
            arm,
            1e3 * timing["median"],
            case["ratios"][arm][1],
            None if timing["peak_bytes"] is None else timing["peak_bytes"] / 2**20,
        ]
        for case in value["cases"]
        for arm, timing in case["arms"].items()
    ]
    terminal.say(f"{name} on {value['conditions']['machine']}, {value['conditions']['threads']} threads")
    terminal.table(["case", "arm", "ms", "time / baseline", "peak MiB"], rows)
    terminal.say(*(f"note: {note}" for note in value["notes"]))
    return value
