"""``routing/sparsity``: how few nodes keep every prediction."""

from __future__ import annotations

from functools import partial
from typing import Any

from convsmith.interpretation import find_routes, initialisation_overlap
from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from convsmith.studies.contract import Outcome, Study, Verdict, study
from convsmith.studies.digit_routes import DATA, KINDS, held_out, network
from convsmith.studies.statistics import interval


def measure(kind: str, mode: str, seed: int, count: int, device: str) -> dict[str, float]:
    """Return share of critical nodes, share of kept predictions and self-checks, in percent."""
    model = network(kind, seed, device)
    x, y, _ = held_out(seed, count, device)
    routes = find_routes(model, x, mode=mode)
    overlap = initialisation_overlap(model, x[:32], seeds=(seed,), mode=mode)
    accuracy = (routes.prediction == y).double().mean()
    return {
        "accuracy": 100 * float(accuracy),
        "critical": 100 * float(routes.sparsity().mean()),
        "kept": 100 * float(routes.kept.double().mean()),
        "divergence": float(routes.divergence.mean()),
        "closed": 100 * float(routes.flags.closed.any(1).double().mean()),
        "dead": 100 * float(routes.flags.dead_share.mean()),
        "overlap": 100 * float(overlap.mean()),
    }


@study(
    "routing/sparsity",
    claim="A small share of the nodes, about a tenth to a fifth, keeps every prediction.",
    source="Wang et al., Critical Data Routing Paths, CVPR 2018, section 4.1",
    rule="Two networks, converged mode, gamma 0.05. A network counts if every prediction is kept and the upper end of "
    "the interval of the mean share of critical nodes is at most 20 %. Reproduced if both count, partly if one does, "
    "else not reproduced. The published schedule of 30 steps stands beside it, since its horizon and not the optimum "
    "sets its sparsity.",
    data=DATA,
)
def sparsity(running: Study) -> Outcome:
    """Find routes in both modes on both networks."""
    count = 60 if running.quick else 150
    total = len(KINDS) * 2 * len(running.seeds)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kind in KINDS:
        for seed in running.seeds:
            for mode in ("paper", "converged"):
                work = partial(measure, kind, mode, seed, count, running.device)
                found.setdefault((kind, mode), []).append(running.cell(f"{kind}|{mode}|{seed}", work, total))
    rows, shown, held = [], {}, []
    for (kind, mode), cells in found.items():
        share = interval([c["critical"] for c in cells])
        kept = min(c["kept"] for c in cells)
        means = [str(interval([c[k] for c in cells])) for k in ("accuracy", "divergence", "closed", "dead", "overlap")]
        rows.append([kind, mode, str(share), kept, *means])
        shown[f"{kind}, {mode}"] = (share.mean, share.low, share.high)
        if mode == "converged":
            held.append(kept == 100 and share.high <= 20)
    verdict: Verdict = "reproduced" if all(held) else "partly" if any(held) else "not reproduced"
    columns = ["network", "mode", "critical nodes, %", "kept (worst seed), %", "accuracy, %", "divergence, nats"]
    columns += ["images with a closed layer, %", "critical but silent, %", "overlap of two starts, %"]
    shares = ", ".join(f"{k} {v[0]:.1f} %" for k, v in shown.items())
    return Outcome(
        verdict,
        f"Critical nodes: {shares}.",
        [Table(columns, rows, f"{count} test images a seed, mean and 95 % interval over seeds.")],
        [
            Figure(
                bars(shown, xlabel="critical nodes, %", reference=(20, "a fifth")),
                "Share of critical nodes by network and mode.",
                "Bars of the share of critical nodes for two networks and two solver modes, a line at 20 %.",
            )
        ],
    )
