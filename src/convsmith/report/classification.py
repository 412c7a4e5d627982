"""The report's chapters on a classifier: accuracy with intervals, confusion, wrong examples, calibration."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from torch import Tensor

from convsmith.report.figures import Series, heatmap, lines, png, small
from convsmith.report.section import Figure, InlineImage, Section, Table
from convsmith.training import Metrics


def confusion_section(metrics: Metrics, classes: Sequence[str]) -> Section:
    """Return accuracy by class and the confusion matrix (rows are true classes)."""
    matrix = np.asarray(metrics.confusion)
    rows = []
    for number, name in enumerate(classes):
        total = int(matrix[number].sum())
        right = int(matrix[number, number])
        worst = int(np.where(np.arange(len(classes)) == number, -1, matrix[number]).argmax())
        wrong = int(matrix[number, worst]) if worst != number else 0
        mistake = f"{classes[worst]} ({wrong})" if wrong else None
        bounds = metrics.per_class_intervals[number]
        interval = None if bounds is None else f"{100 * bounds[0]:.0f} to {100 * bounds[1]:.0f}"
        rows.append([name, total, 100.0 * right / total if total else None, interval, mistake])
    figures = []
    if len(classes) <= 40:
        svg = heatmap(matrix, rows=classes, columns=classes, xlabel="predicted class", ylabel="true class")
        alt = f"Confusion matrix of {len(classes)} classes, {int(np.trace(matrix))} of {int(matrix.sum())} correct."
        figures.append(Figure(svg, "Confusion matrix; a cell counts images.", alt))
    columns = ["class", "images", "accuracy, %", "95 % Wilson interval", "most often taken for"]
    return Section("Classes", [], [Table(columns, rows)], figures)


def calibration_section(metrics: Metrics) -> Section:
    """Return the reliability curve: mean confidence against accuracy in equal-width bins of confidence."""
    held = [(count, confidence, right) for count, confidence, right in metrics.calibration if count]
    counts, x, y = zip(*held, strict=True)
    curve = {"measured": Series(x, y)}
    svg = lines(curve, xlabel="mean confidence", ylabel="accuracy", diagonal=True, size=(4.6, 3.6))
    caption = (
        f"Calibration in {len(metrics.calibration)} bins of confidence (images per bin that holds some: "
        f"{', '.join(map(str, counts))}); on the dotted line confidence equals accuracy."
    )
    text = f"Expected calibration error: {100 * metrics.ece:.2f} % over {metrics.count} images."
    figure = Figure(svg, caption, "Reliability curve of accuracy against confidence.")
    return Section("Calibration", [text], figures=[figure])


def wrong_examples_section(
    probabilities: Tensor, labels: Tensor, classes: Sequence[str], pixels: Callable[[Tensor], Tensor], most: int = 24
) -> Section:
    """Return the wrongly classified images, most confident first; ``pixels`` maps positions to [B, C, H, W]."""
    confidence, predicted = probabilities.max(1)
    wrong = (predicted != labels).nonzero().flatten()
    order = wrong[confidence[wrong].argsort(descending=True)][:most]
    if not len(order):
        return Section("Wrong examples", [f"All {len(labels)} images were classified correctly."])
    pictures = []
    for position, image in zip(order.tolist(), pixels(order), strict=True):
        said, true = classes[int(predicted[position])], classes[int(labels[position])]
        caption = f"{true}, taken for {said} at {100 * float(confidence[position]):.0f} %"
        alt = f"image of class {true}, predicted {said}"
        pictures.append(InlineImage(png(image.numpy()), caption, alt, pixelated=small(image)))
    text = f"{len(wrong)} of {len(labels)} images are wrong; shown are {len(pictures)}, the most confident first."
    return Section("Wrong examples", [text], images=pictures)
