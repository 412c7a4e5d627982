"""``redundancy/arithmetic``: what group convolution saves in the article's example."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from convsmith.compression import cost
from convsmith.report import Table
from experiments.studies.contract import Outcome, Study, study


@study(
    "redundancy/arithmetic",
    claim="Two groups halve the multiplications of a 6 to 6 channel 5x5 convolution, from 6x5x5x6 to 2x(3x5x5x3).",
    source="Article on redundancy in convolution kernels, example of group convolution; IGCV1, section 3",
    rule="Reproduced if the counter gives 900 multiplications per position for one group and 450 for two, and the "
    "grouped layer equals two separate convolutions on the halves to 1e-12; else not reproduced.",
    data="none (arithmetic)",
)
def arithmetic(running: Study) -> Outcome:
    """Count the example, and every other number of groups of six channels."""
    rows = [running.cell(f"groups-{groups}", partial(_count, groups), 4) for groups in (1, 2, 3, 6)]
    by_groups = {row["groups"]: row for row in rows}
    counts = (by_groups[1]["macs"], by_groups[2]["macs"])
    same = max(row["difference"] for row in rows) < 1e-12
    verdict: Any = "reproduced" if counts == (900, 450) and same else "not reproduced"
    table = Table(
        ["groups", "multiplications per position", "weights", "largest difference from separate convolutions"],
        [[row["groups"], row["macs"], row["params"], row["difference"]] for row in rows],
        "A 5x5 convolution from 6 to 6 channels.",
    )
    return Outcome(verdict, f"{counts[0]} multiplications with one group, {counts[1]} with two.", [table])


def _count(groups: int) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 6, 5, padding=2, groups=groups, bias=False).double()
    counted = cost(layer, (6, 1, 1))
    x = torch.randn(2, 6, 9, 9, dtype=torch.float64)
    parts = zip(x.chunk(groups, 1), layer.weight.chunk(groups), strict=True)
    apart = torch.cat([nn.functional.conv2d(piece, weight, padding=2) for piece, weight in parts], 1)
    difference = float((layer(x) - apart).abs().max().detach())
    return {"groups": groups, "macs": counted.macs, "params": counted.params, "difference": difference}
