"""``redundancy/dense-kernel``: chains of sparse group convolutions have dense composite kernels."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from convsmith.compression import (
    InterleavedGroupConv2d,
    InterleavedStructuredConv2d,
    InvertedInterleavedBlock,
    composite_kernel,
    condition,
    cost,
)
from convsmith.report import Figure, Table
from convsmith.report.figures import heatmap
from experiments.studies.contract import Outcome, Study, study

CHAINS = {
    "IGCV1, L=6 M=4": lambda: InterleavedGroupConv2d(6, 4, dtype=torch.float64),
    "IGCV2, 8 channels, three layers of 2": lambda: InterleavedStructuredConv2d((2, 2, 2), dtype=torch.float64),
    "IGCV2, 64 channels, three layers of 4": lambda: InterleavedStructuredConv2d((4, 4, 4), dtype=torch.float64),
    "IGCV2, loose, 24 channels, three layers of 4": lambda: InterleavedStructuredConv2d(
        (4, 4, 4), channels=24, dtype=torch.float64
    ),
}


@study(
    "redundancy/dense-kernel",
    claim="Chains of sparse group convolutions have a dense composite kernel although every factor is sparse.",
    source="IGCV1, section 3; IGCV2, section 3.2 and the article's 8-channel example; IGCV3, section 3",
    rule="Reproduced if IGCV1 and both strict IGCV2 chains have exactly one path per channel pair, composites without "
    "a zero entry that equal the chain to 1e-12, and IGCV3's block has the same positive number of paths for all "
    "pairs; partly if only the densities hold; else not reproduced.",
    data="none (algebra, float64)",
)
def dense_kernel(running: Study) -> Outcome:
    """Path counts, density, rank and agreement of the composite, and a picture of the 8-channel example."""
    total = len(CHAINS) + 1
    rows = {name: running.cell(name, partial(_chain, name), total) for name in CHAINS}
    block = running.cell("IGCV3, 24 to 24, t=6, two groups", _block, total)
    strict = [row for name, row in rows.items() if "loose" not in name]
    dense = all(row["density"] == 1.0 for row in strict) and block["fewest"] == block["most"] >= 1
    exact = all(row["fewest"] == row["most"] == 1 and row["difference"] < 1e-12 for row in strict)
    verdict: Any = "reproduced" if dense and exact else "partly" if dense else "not reproduced"
    columns = ["chain", "weights", "dense layer", "paths per pair", "density", "rank of the composite", "difference"]
    lines = [
        [
            name,
            row["params"],
            row["dense"],
            str(row["fewest"]) if row["fewest"] == row["most"] else f"{row['fewest']} to {row['most']}",
            row["density"],
            row["rank"],
            row["difference"],
        ]
        for name, row in rows.items()
    ]
    lines.append(["IGCV3, 24 to 24, t=6, two groups", block["params"], None, str(block["most"]), 1.0, None, None])
    eight = rows["IGCV2, 8 channels, three layers of 2"]["magnitude"]
    figure = Figure(
        heatmap(
            np.array(eight),
            rows=[str(n) for n in range(8)],
            columns=[str(n) for n in range(8)],
            xlabel="input channel",
            ylabel="output channel",
        ),
        "Norm of the composite kernel of the 8-channel three-layer chain, output by input channel: no entry is zero.",
        "An 8 by 8 grid without an empty cell.",
    )
    lightest = min(row["params"] / row["dense"] for row in strict)
    summary = (
        f"Every pair of channels has exactly one path; the lightest chain has {lightest:.0%} of the dense weights."
    )
    if verdict != "reproduced":
        summary = "Not every strict chain is dense with one path per pair."
    return Outcome(verdict, summary, [Table(columns, lines, "Composite kernels of 3x3 chains.")], [figure])


def _chain(name: str) -> dict[str, Any]:
    torch.manual_seed(0)
    layer = CHAINS[name]()
    with torch.no_grad():
        kernel = composite_kernel(layer)
        x = torch.randn(2, layer.in_channels, 6, 6, dtype=torch.float64)
        difference = float((layer(x) - nn.functional.conv2d(x, kernel, padding=1)).abs().max())
    judged = condition(layer)
    magnitude = kernel.flatten(2).norm(dim=2)
    return {
        "params": sum(weight.numel() for weight in layer.weights),
        "dense": kernel.numel(),
        "fewest": judged.fewest,
        "most": judged.most,
        "density": float((kernel != 0).double().mean()),
        "rank": int(torch.linalg.matrix_rank(kernel.flatten(1))),
        "difference": difference,
        "magnitude": magnitude.tolist() if len(magnitude) <= 8 else None,
    }


def _block() -> dict[str, Any]:
    block = InvertedInterleavedBlock(24, 24, 1, 6, 2, 2)
    judged = condition(block)
    return {
        "params": cost(block, (24, 4, 4)).params_as("conv"),
        "fewest": judged.fewest,
        "most": judged.most,
    }
