"""``routing/detector``: adversarial digits told by their routes, from few images, beside cheap baselines."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from convsmith.interpretation import Images, detection_table
from convsmith.interpretation.baselines import NAMES
from convsmith.report import Figure, Table
from convsmith.report.figures import bars
from experiments.studies.contract import Outcome, Study, Verdict, study
from experiments.studies.digit_routes import DATA, digits, held_out, network
from experiments.studies.statistics import interval

EPSILON = 32 / 255
CLASSIFIERS = ("random-forest", "adaboost", "gradient-boosting")
PER_CLASS = (1, 5, 10)


def measure(feature: str, seed: int, count: int, device: str) -> list[dict[str, Any]]:
    """Return the detection table of one kind of features as plain values."""
    about = digits().description
    split = digits().train
    chosen = torch.randperm(len(split), generator=torch.Generator().manual_seed(seed))[:400]
    batch = split.fetch(chosen).to(device)
    x, y, index = held_out(seed, count, device)
    rows = detection_table(
        network("plain", seed, device),
        Images(batch.images, batch.labels, batch.index, about.mean, about.std),
        Images(x, y, index, about.mean, about.std),
        epsilon=EPSILON,
        per_class=PER_CLASS,
        classifiers=CLASSIFIERS,
        features=(feature,),
        seed=seed,
    )
    return [
        {
            "classifier": row.classifier,
            "per_class": row.per_class,
            "attack": row.attack,
            "seen": row.seen,
            "harmless": row.harmless,
            "flipped": row.flipped,
            "auroc": row.report.auroc,
            "low": row.report.auroc_low,
            "high": row.report.auroc_high,
            "hits": row.report.hit_rate,
        }
        for row in rows
    ]


@study(
    "routing/detector",
    claim="Routes detect adversarial inputs from one, five or ten images a class, unseen attacks included.",
    source="Wang et al., Critical Data Routing Paths, CVPR 2018, section 4.3",
    rule="Plain network, random forest on routes of 10 images a class, fitted on iterated FGSM. Reproduced if the "
    "lower end of the interval over seeds of the area under the ROC curve is at least 0.9 on the seen attack and 0.8 "
    "on the mean of the unseen ones; partly if they are at least 0.75 and 0.65; else not reproduced. Baselines and "
    "harmless changes are reported beside it and do not enter the verdict.",
    data=DATA,
)
def detector(running: Study) -> Outcome:
    """Fit and score detectors on four kinds of features."""
    count = 100 if running.quick else 150
    kinds = ("routes", *NAMES)
    found: dict[tuple[str, str, int, str], list[dict[str, Any]]] = {}
    for seed in running.seeds:
        for feature in kinds:
            work = partial(measure, feature, seed, count, running.device)
            for row in running.cell(f"{feature}|{seed}", work, len(kinds) * len(running.seeds)):
                key = (feature, row["classifier"], row["per_class"], row["attack"])
                found.setdefault(key, []).append(row)
    own = {attack: cells for (f, c, n, attack), cells in found.items() if (f, c, n) == ("routes", CLASSIFIERS[0], 10)}
    seen = interval([c["auroc"] for cells in own.values() for c in cells if c["seen"]])
    unseen_cells = [cells for cells in own.values() if not cells[0]["seen"] and not cells[0]["harmless"]]
    unseen = interval([sum(c["auroc"] for c in some) / len(some) for some in zip(*unseen_cells, strict=True)])
    verdict: Verdict = "not reproduced"
    if seen.low >= 0.9 and unseen.low >= 0.8:
        verdict = "reproduced"
    elif seen.low >= 0.75 and unseen.low >= 0.65:
        verdict = "partly"
    shown, better = {}, []
    for feature in kinds:
        area = interval([c["auroc"] for c in found[feature, CLASSIFIERS[0], 10, "ifgsm"]])
        shown[feature] = (area.mean, area.low, area.high)
        if feature != "routes" and area.mean > seen.mean:
            harmless = interval([c["auroc"] for c in found[feature, CLASSIFIERS[0], 10, "noise"]])
            better.append(f"{feature} ({area}, but {harmless} on harmless noise)")
    noise = interval([c["auroc"] for c in own["noise"]])
    beaten = f" Better than routes: {', '.join(better)}." if better else " No baseline is better."
    return Outcome(
        verdict,
        f"Routes, 10 images a class: AUROC {seen} seen, {unseen} unseen, {noise} on harmless noise.{beaten}",
        _tables(found),
        [
            Figure(
                bars(
                    shown,
                    xlabel="AUROC on the seen attack, random forest, 10 images a class",
                    reference=(0.5, "chance"),
                ),
                "Routes beside cheap features.",
                "Bars of the area under the ROC curve for four kinds of features.",
            )
        ],
    )


def _tables(found: dict[tuple[str, str, int, str], list[dict[str, Any]]]) -> list[Table]:
    """Return what the changes are, the area under the curve, and the hits, a column for every change."""
    changes = list(dict.fromkeys(attack for *_, attack in found))
    kinds = []
    for attack in changes:
        cells = next(cells for (*_, a), cells in found.items() if a == attack)
        kind = "seen" if cells[0]["seen"] else "unseen"
        kind = "null: the clean image again" if attack == "none" else "harmless" if cells[0]["harmless"] else kind
        kinds.append([attack, kind, str(interval([100 * c["flipped"] for c in cells]))])
    tables = [Table(["change", "kind", "predictions flipped, %"], kinds, "The changes; mean and 95 % interval.")]
    for measured, scale, caption in (
        ("auroc", 1, "Area under the ROC curve, mean and 95 % interval over seeds."),
        ("hits", 100, "Hits in % at 5 % false positives, mean and 95 % interval over seeds."),
    ):
        rows = [
            [
                *key,
                *(
                    str(interval([scale * c[measured] for c in found[key[0], key[1], key[2], attack]]))
                    for attack in changes
                ),
            ]
            for key in dict.fromkeys(key[:3] for key in found)
        ]
        tables.append(Table(["features", "classifier", "images a class", *changes], rows, caption))
    return tables
