"""Measure a classifier on one split and write what a report shows of it; shared by train, evaluate, compress, demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convsmith.cli.shell import terminal
from convsmith.cli.shell.progress import progress
from convsmith.errors import RunFailed

if TYPE_CHECKING:
    from torch import Tensor, nn

    from convsmith.data import ImageSplit
    from convsmith.training import Metrics


@dataclass(frozen=True)
class Evaluation:
    """``metrics`` on ``split`` and the probabilities [N, K] and labels [N] they come from."""

    split: ImageSplit
    name: str
    metrics: Metrics
    probabilities: Tensor
    labels: Tensor


def evaluate(
    model: nn.Module, split: ImageSplit, name: str, arguments: Any, share: tuple[int, int] = (0, 1)
) -> Evaluation:
    """Run the model over a split; intervals are 95 % bootstrap intervals over images, drawn by ``--seed``."""
    from convsmith.training import classification_metrics

    logits, labels = predict(model, split, f"evaluate {name}", arguments, share)
    metrics = classification_metrics(logits, labels, arguments.seed)
    return Evaluation(split, name, metrics, logits.softmax(1), labels)


def predict(
    model: nn.Module, split: ImageSplit, title: str, arguments: Any, share: tuple[int, int] = (0, 1)
) -> tuple[Tensor, Tensor]:
    """Return logits [N, K] and labels [N] of a split, or raise `RunFailed` where logits are nan or infinite.

    ``share``: number of this process and of all that predict together.
    """
    from convsmith.training import predict_split, resolve_device

    device, workers = resolve_device(arguments.device), arguments.num_workers
    with progress(title) as callback:
        logits, labels, _ = predict_split(
            model, split, arguments.batch_size, device, workers=workers, share=share, progress=callback
        )
    if not bool(logits.isfinite().all()):
        argument = f"{title}, {len(split)} images"
        given = f"{int((~logits.isfinite()).any(1).sum())} images with nan or infinite outputs"
        hint = "lower the learning rate, warm up or clip gradients; checkpoints from before are kept"
        raise RunFailed("the network's output is not finite", argument=argument, given=given, hint=hint)
    return logits, labels


def rows(found: Evaluation) -> list[tuple[str, float, str]]:
    """Return (metric, value, interval) for tables."""
    metrics = found.metrics
    values = {
        "top1": ("accuracy, %", 100.0, metrics.top1),
        "top5": ("top-5 accuracy, %", 100.0, metrics.top5),
        "balanced": ("mean accuracy of classes, %", 100.0, metrics.balanced),
        "cross_entropy": ("cross-entropy, nats", 1.0, metrics.cross_entropy),
        "ece": ("calibration error (ECE), %", 100.0, metrics.ece),
    }
    lines = []
    for key, (label, factor, value) in values.items():
        if value is not None:
            low, high = metrics.intervals[key]
            lines.append((label, factor * value, f"{factor * low:.4g} to {factor * high:.4g}"))
    return lines


def show(found: Evaluation) -> None:
    """Print the numbers with their intervals."""
    terminal.table((f"{found.name}, {found.metrics.count:,} images", "value", "95 % interval"), rows(found))


def write_sections(found: Evaluation, folder: Path) -> None:
    """Write the report's chapters on this evaluation into a run folder."""
    from convsmith.report import Section, Table
    from convsmith.report import classification as chapters
    from convsmith.report.paired import Outcomes, write_outcomes

    classes = found.split.classes
    right = (found.probabilities.argmax(1) == found.labels).int().tolist()
    index = [int(number) for number in found.split.index]
    write_outcomes(folder, Outcomes(found.split.description.name, found.name, index, right))
    about = (
        f"Measured on {found.metrics.count} images of the {found.name} split of {found.split.description.name}. "
        f"Intervals are percentiles of {found.metrics.resamples} bootstrap resamples of the images; they do not cover "
        "the spread between training seeds."
    )
    Section("Result", [about], [Table(["metric", "value", "95 % interval"], rows(found))]).save(folder, "10-result")
    chapters.confusion_section(found.metrics, classes).save(folder, "11-classes")
    chapters.calibration_section(found.metrics).save(folder, "12-calibration")
    wrong = chapters.wrong_examples_section(found.probabilities, found.labels, classes, found.split.pixels)
    wrong.save(folder, "13-wrong-examples")


def headline(found: Evaluation) -> dict[str, Any]:
    """Return the numbers that stand on top of a report."""
    low, high = found.metrics.intervals["top1"]
    return {
        f"{found.name} accuracy, %": round(100 * found.metrics.top1, 2),
        "95 % interval": f"{100 * low:.2f} to {100 * high:.2f}",
        f"{found.name} images": found.metrics.count,
    }
