"""``routing/adversarial``: where the route of an attacked image leaves that of the clean one."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from convsmith.interpretation import attack, find_routes, jaccard
from convsmith.report import Figure, Table
from convsmith.report.figures import Series, lines
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_routes import DATA, KINDS, digits, held_out, network
from experiments.studies.statistics import interval, paired_difference

EPSILON = 48 / 255
PAIRS = {
    "own": "its attacked version",
    "same": "another clean image of its class",
    "other": "a clean image of another class",
    "target": "attacked, with a clean image of the class reached",
}


def measure(kind: str, seed: int, count: int, device: str) -> dict[str, Any]:
    """Return mean overlap of critical nodes by layer for the four pairs, over images whose prediction flipped."""
    model = network(kind, seed, device)
    x, y, _ = held_out(seed, count, device)
    about = digits().description
    moved = attack(model, x, y, "ifgsm", EPSILON, mean=about.mean, std=about.std, seed=seed)
    clean, bad = (find_routes(model, images, labels=y, open_layers=True) for images in (x, moved))
    flipped = ((clean.prediction == y) & (bad.prediction != clean.prediction)).nonzero()[:, 0]
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, list[float]] = {}
    partners = {
        "same": _partners(clean.prediction[flipped], clean.prediction, flipped, generator, equal=True),
        "other": _partners(clean.prediction[flipped], clean.prediction, flipped, generator, equal=False),
        "target": _partners(bad.prediction[flipped], clean.prediction, flipped, generator, equal=True),
    }
    for layer in clean.layers:
        a, b = clean.gates[layer] > 0, bad.gates[layer] > 0
        values = {
            "own": jaccard(a[flipped], b[flipped]),
            "same": jaccard(a[flipped], a[partners["same"]]),
            "other": jaccard(a[flipped], a[partners["other"]]),
            "target": jaccard(b[flipped], a[partners["target"]]),
        }
        for name, value in values.items():
            found.setdefault(name, []).append(float(value.mean()))
    return {"flipped": len(flipped), "images": count, "overlap": found}


def _partners(wanted: Tensor, have: Tensor, own: Tensor, generator: torch.Generator, *, equal: bool) -> Tensor:
    """Return for every wanted class the place of a random image that has it (or has another)."""
    places = []
    for label, me in zip(wanted.tolist(), own.tolist(), strict=True):
        fits = (have == label) if equal else (have != label)
        fits[me] = False
        options = fits.nonzero()[:, 0]
        pick = int(torch.randint(len(options), (1,), generator=generator)) if len(options) else 0
        places.append(int(options[pick]) if len(options) else me)
    return torch.tensor(places, device=have.device)


@study(
    "routing/adversarial",
    claim="A perturbation leaves the routes of shallow layers and changes those of deep ones.",
    source="Wang et al., Critical Data Routing Paths, CVPR 2018, section 4.3",
    rule="Overlap (Jaccard) of critical nodes, converged mode with every layer kept open (two empty layers would count "
    "as equal), images whose prediction flipped. Two checks on each of two networks, paired over seeds: the overlap of "
    "clean and attacked falls from the first to the last layer, and in the last layer it lies below that of two clean "
    "images of one class while in the first it lies above. Reproduced if all four hold with their whole interval, "
    "partly if at least two, else not reproduced.",
    data=DATA,
)
def adversarial(running: Study) -> Outcome:
    """Measure overlaps by layer with three controls."""
    count = 50 if running.quick else 100
    found: dict[str, list[dict[str, Any]]] = {}
    for kind in KINDS:
        for seed in running.seeds:
            work = partial(measure, kind, seed, count, running.device)
            found.setdefault(kind, []).append(running.cell(f"{kind}|{seed}", work, len(KINDS) * len(running.seeds)))
    rows, figures, held, words = [], [], [], []
    for kind, cells in found.items():
        own, same = ([c["overlap"][name] for c in cells] for name in ("own", "same"))
        depth = list(range(1, len(own[0]) + 1))
        for name, label in PAIRS.items():
            values = [interval([c["overlap"][name][d - 1] for c in cells]) for d in depth]
            rows.append([kind, label, *(str(v) for v in values)])
        fall = paired_difference([v[0] for v in own], [v[-1] for v in own])
        deep = paired_difference([v[-1] for v in same], [v[-1] for v in own])
        shallow = paired_difference([v[0] for v in own], [v[0] for v in same])
        held += [fall.low > 0, deep.low > 0 and shallow.low > 0]
        flips = sum(c["flipped"] for c in cells) / sum(c["images"] for c in cells)
        words.append(f"{kind}: overlap falls by {fall} from first to last layer ({flips:.0%} of images flipped)")
        curves = {}
        for name, label in PAIRS.items():
            values = [interval([c["overlap"][name][d - 1] for c in cells]) for d in depth]
            curves[label] = Series(depth, [v.mean for v in values], [v.low for v in values], [v.high for v in values])
        figures.append(
            Figure(
                lines(curves, xlabel="layer", ylabel="overlap of critical nodes"),
                f"{kind} network: overlap by layer, mean and 95 % interval over seeds.",
                "Overlap by layer of a clean image's route with four others.",
            )
        )
    verdict: Verdict = "reproduced" if all(held) else "partly" if sum(held) >= 2 else "not reproduced"
    columns = ["network", "pair", *(f"layer {d}" for d in range(1, len(rows[0]) - 1))]
    return Outcome(verdict, "; ".join(words) + ".", [Table(columns, rows, "Mean overlap, 0 to 1.")], figures)
