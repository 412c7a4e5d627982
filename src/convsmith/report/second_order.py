"""The report's chapter on a second-order head: the spectrum it sees and what its iteration keeps."""

from __future__ import annotations

from convsmith.pooling.diagnostics import Diagnostics
from convsmith.report.figures import Series, lines
from convsmith.report.section import Figure, Section, Table


def second_order_section(found: Diagnostics, *, title: str = "Second-order pooling") -> Section:
    """Return rank, condition, residual and the spectrum with the iteration's response, from `diagnose`."""
    rows = [
        ("channels x positions", f"{found.channels} x {found.positions}"),
        ("rank (at most positions - 1)", found.rank),
        ("effective rank", found.effective_rank),
        ("condition of the range", found.condition),
        (f"|Y^2 - A| / |A| after {found.iterations} iterations", found.residual),
        (f"largest eigenvalue of Z (at most {1.5**found.iterations:.3g})", found.growth),
    ]
    place = list(range(1, found.channels + 1))
    figure = Figure(
        lines(
            {
                "share of energy": Series(place, list(found.shares)),
                "kept of the exact root": Series(place, list(found.response)),
            },
            xlabel="eigenvalue, largest first",
            ylabel="share",
        ),
        f"Mean spectrum of {found.samples - found.dead} feature maps, and how much of each exact root"
        f" {found.iterations} Newton-Schulz iterations keep.",
        "Two falling curves: energy per eigenvalue, and the share of the exact square root that the iteration keeps.",
    )
    notes = []
    if found.dead:
        notes.append(f"{found.dead} of {found.samples} feature maps are constant; their pooled vector is zero.")
    if found.positions <= found.channels:
        notes.append(
            f"{found.positions} positions cannot fill {found.channels} channels: the covariance is rank-deficient."
        )
    return Section(title, [], [Table(["quantity", "mean"], rows)], [figure], notes=notes)
