"""``routing/sparsity``: how few nodes keep every prediction."""

from __future__ import annotations

from functools import partial
from typing import Any

from convsmith.interpretation import find_routes, initialisation_overlap
from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_routes import DATA, KINDS, held_out, network
from experiments.studies.statistics import interval

#: the last one decides
ARMS: dict[str, dict[str, Any]] = {
    "paper": {"mode": "paper"},
    "converged": {"mode": "converged"},
    "converged, layers kept open": {"mode": "converged", "open_layers": True},
}


def measure(kind: str, arm: str, seed: int, count: int, device: str) -> dict[str, float]:
    """Return share of critical nodes, share of kept predictions and self-checks, in percent."""
    model = network(kind, seed, device)
    x, y, _ = held_out(seed, count, device)
    routes = find_routes(model, x, **ARMS[arm])
    overlap = initialisation_overlap(model, x[:32], seeds=(seed,), mode=ARMS[arm]["mode"])
    accuracy = (routes.prediction == y).double().mean()
    return {
        "accuracy": 100 * float(accuracy),
        "critical": 100 * float(routes.sparsity().mean()),
        "kept": 100 * float(routes.kept.double().mean()),
        "divergence": float(routes.divergence.mean()),
        "closed": 100 * float((~routes.flags.open.all(1)).double().mean()),
        "dead": 100 * float(routes.flags.dead_share.mean()),
        "overlap": 100 * float(overlap.mean()),
    }


@study(
    "routing/sparsity",
    claim="A small share of the nodes, about a tenth to a fifth, keeps every prediction.",
    source="Wang et al., Critical Data Routing Paths, CVPR 2018, section 4.1",
    rule="Two networks, converged mode, gamma 0.05, beside a blank of each image's mean colour, so that the gates must "
    "carry what the image adds: through closed layers a prediction comes from biases. A network counts if every "
    "prediction is kept and the upper end of the interval of the mean share of critical nodes is at most 20 %. "
    "Reproduced if both count, partly if one does, else not reproduced. Beside it stand the same with closed layers "
    "allowed, and the published schedule of 30 steps, whose horizon and not the optimum sets its sparsity.",
    data=DATA,
)
def sparsity(running: Study) -> Outcome:
    """Find routes in three ways on both networks."""
    count = 60 if running.quick else 150
    total = len(KINDS) * len(ARMS) * len(running.seeds)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for kind in KINDS:
        for seed in running.seeds:
            for arm in ARMS:
                work = partial(measure, kind, arm, seed, count, running.device)
                found.setdefault((kind, arm), []).append(running.cell(f"{kind}|{arm}|{seed}", work, total))
    rows, shown, held = [], {}, []
    for (kind, arm), cells in found.items():
        share = interval([c["critical"] for c in cells])
        kept = min(c["kept"] for c in cells)
        means = [str(interval([c[k] for c in cells])) for k in ("accuracy", "divergence", "closed", "dead", "overlap")]
        rows.append([kind, arm, str(share), kept, *means])
        shown[f"{kind}, {arm}"] = (share.mean, share.low, share.high)
        if arm == list(ARMS)[-1]:
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
                "Bars of the share of critical nodes for two networks and three ways of solving, a line at 20 %.",
            )
        ],
    )
