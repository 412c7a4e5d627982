"""The detection table as a report section; shared by ``convsmith detect`` and the demonstration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from convsmith.interpretation import DetectionRow
    from convsmith.report import Section


def section(rows: Sequence[DetectionRow], epsilon: float) -> Section:
    """Return the table: every feature against seen and unseen attacks, harmless changes and the null."""
    from convsmith.report import Section, Table

    return Section(
        "Adversarial or not",
        [
            f"Detectors fitted on few images and one attack (change of at most {epsilon * 255:.0f}/255 a pixel), "
            "scored on other images. Harmless changes should score near 0.5 and their hits are false alarms; the null "
            "is a second pass over the clean images. Intervals resample images. A detector is no defence against an "
            "attacker who knows it."
        ],
        [Table(COLUMNS, [cells(row) for row in rows], "Area under the ROC curve and hit rate at 5 % false positives.")],
    )


COLUMNS = (
    "features",
    "classifier",
    "images a class",
    "change",
    "kind",
    "predictions flipped, %",
    "AUROC",
    "95 % interval",
    "hits at 5 %, %",
    "95 % interval of hits",
)


def cells(row: DetectionRow) -> list[object]:
    """Return one row of the table."""
    found = row.report
    kind = "null" if row.attack == "none" else "harmless" if row.harmless else "seen" if row.seen else "unseen"
    return [
        row.features,
        row.classifier,
        row.per_class,
        row.attack,
        kind,
        round(100 * row.flipped, 1),
        round(found.auroc, 3),
        f"{found.auroc_low:.3f} to {found.auroc_high:.3f}",
        round(100 * found.hit_rate, 1),
        f"{100 * found.hit_low:.0f} to {100 * found.hit_high:.0f}",
    ]
