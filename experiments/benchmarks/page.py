"""``docs/benchmarks.md`` from the JSON under ``results/benchmarks``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from experiments.markdown import GENERATED, conditions_line, table


def benchmark_page(results: Path) -> str:
    """Return the page as Markdown, one chapter a suite, every committed case in it, won or lost."""
    parts = [
        "# Benchmarks",
        GENERATED,
        "Every arm of a case was measured in the same run and process, in turn with its baseline, after a warm-up. "
        "Times are medians with quartiles; the ratio is the median over rounds of the arm's time over the baseline's "
        "(below 1 is faster than the baseline). Memory is the most that tensors made inside one call held at once. "
        "Run a suite with `python -m experiments bench SUITE`.",
    ]
    for path in sorted(results.glob("*.json")):
        value = json.loads(path.read_text())
        if value["quick"]:
            continue
        parts += _suite(value)
    return "\n\n".join(parts) + "\n"


def _suite(value: dict[str, Any]) -> list[str]:
    parts = [f"## {value['suite']}", conditions_line(value["conditions"])]
    rows = []
    for case in value["cases"]:
        settings = ", ".join(f"{key} {item}" for key, item in case["settings"].items())
        for arm, timing in case["arms"].items():
            ratio = case["ratios"][arm]
            rows.append(
                [
                    case["name"] if arm == next(iter(case["arms"])) else "",
                    arm + (" (baseline)" if arm == case["baseline"] else ""),
                    f"{1e3 * timing['median']:.4g} ({1e3 * timing['q1']:.4g}–{1e3 * timing['q3']:.4g})",
                    None if arm == case["baseline"] else f"{ratio[1]:.3f} ({ratio[0]:.3f}–{ratio[2]:.3f})",
                    None if timing["peak_bytes"] is None else f"{timing['peak_bytes'] / 2**20:.2f}",
                ]
            )
        if settings or case["aim"]:
            rows[-1][0] = rows[-1][0] or "; ".join(
                part for part in (settings, f"aim: {case['aim']}" if case["aim"] else "") if part
            )
    parts.append(table(["case", "arm", "ms, median (quartiles)", "time / baseline", "peak, MiB"], rows))
    parts += [f"- {note}" for note in value["notes"]]
    return parts
