"""What ``convsmith detect fit`` chooses, warns of and shows of its detection table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from convsmith.inspection import count_operations
from convsmith.interpretation import DetectionRow, RouteDetector
from convsmith.interpretation.detector import auroc
from convsmith.report import Section, Table


def section(rows: Sequence[DetectionRow], epsilon: float, notes: Sequence[str] = ()) -> Section:
    """Return the table: every feature against seen and unseen attacks, harmless changes and the null."""
    columns, cells = table(rows)
    first = [row[3:] for row in cells if row[0] == rows[0].features]
    tables = [Table(columns[3:], first, f"A detector on {rows[0].features}, a {rows[0].classifier}.")]
    if len(first) < len(rows):
        said = "Beside it: every feature; area under the ROC curve and hit rate at 5 % false positives."
        tables.append(Table(columns, cells, said, folded=True))
    return Section(
        "Adversarial or not",
        [
            f"Detectors fitted on few images and one attack (change of at most {epsilon * 255:.0f}/255 a pixel), "
            "scored on other images. Harmless changes should score near 0.5 and their hits are false alarms; the null "
            "is a second pass over the clean images. Intervals resample images. A detector is no defence against an "
            "attacker who knows it."
        ],
        tables,
        notes=notes,
    )


def images_at_once(model: nn.Module, images: Tensor, steps: int) -> int:
    """Return how many images to solve between two tellings of the progress: seconds of work, and at most 32.

    From the operations, never from a clock: routes, and so a detector, depend on how many are solved at once.
    """
    counts = count_operations(model, (1, *images.shape[1:])).by_module.values()
    return max(1, min(32, 10**11 // max(1, steps * sum(count.macs for count in counts))))


def best_fit(detectors: Mapping[str, RouteDetector]) -> str:
    """Return the features whose detector tells its own training images apart best: no image of the table is looked at.

    Every score comes from trees that saw neither the image nor its attacked version (``out_of_fold_``, clean first).
    """
    areas = {name: auroc(*found.out_of_fold_.reshape(2, -1)) for name, found in detectors.items()}
    return max(areas, key=lambda name: areas[name])


def warnings(rows: Sequence[DetectionRow], features: str, *, chosen: bool = False) -> list[str]:
    """Return sentences on why a detector on ``features`` should not be used; empty if nothing speaks against it.

    ``chosen``: they are the best of all on the images to fit on, and others are not proposed.
    """
    seen = {row.features: row.report for row in rows if row.seen}
    own, notes = seen[features], []
    best = max(seen, key=lambda name: seen[name].auroc)
    if own.auroc_low <= 0.5:
        interval = f"{own.auroc:.2f} ({own.auroc_low:.2f} to {own.auroc_high:.2f})"
        notes.append(f"The area under its ROC curve is {interval}: it may be no better than chance. Do not use it.")
    if best != features and not chosen:
        area = seen[best].auroc
        notes.append(f"{best} do better than {features}: {area:.2f} against {own.auroc:.2f}; fit with --features best.")
    return notes


def table(rows: Sequence[DetectionRow]) -> tuple[list[str], list[list[object]]]:
    """Return the columns and the cells of the whole table."""
    cells = [_cells(row) for row in rows]
    return list(cells[0]), [list(row.values()) for row in cells]


def _cells(row: DetectionRow) -> dict[str, object]:
    found = row.report
    kind = "null" if row.attack == "none" else "harmless" if row.harmless else "seen" if row.seen else "unseen"
    return {
        "features": row.features,
        "classifier": row.classifier,
        "images a class": row.per_class,
        "change": row.attack,
        "kind": kind,
        "predictions flipped, %": round(100 * row.flipped, 1),
        "AUROC": round(found.auroc, 3),
        "95 % interval": f"{found.auroc_low:.3f} to {found.auroc_high:.3f}",
        "caught at 5 % false alarms, %": round(100 * found.hit_rate, 1),
        "95 % interval of that": f"{100 * found.hit_low:.0f} to {100 * found.hit_high:.0f}",
    }
