"""What an adaptation gives back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convsmith.adaptation.evaluation.alarms import Alarm
from convsmith.adaptation.methods.method import MethodConfig
from convsmith.files import write_csv


@dataclass(frozen=True)
class Predictions:
    """What the model says of every target image.

    Shapes: ``index`` [n] the image's number in its data set, ``probabilities`` [n, K] calibrated, ``names`` n file
    names or (). ``temperature`` is what the logits were divided by.
    """

    index: Tensor
    probabilities: Tensor
    temperature: float
    classes: tuple[str, ...]
    names: tuple[str, ...] = ()

    @property
    def labels(self) -> Tensor:
        """The predicted classes [n]."""
        return self.probabilities.argmax(1)

    @property
    def confidence(self) -> Tensor:
        """The calibrated probability of the predicted class [n]."""
        return self.probabilities.max(1).values

    def save(self, path: Path | str) -> Path:
        """Write a CSV file with one row an image: index, name, predicted class, confidence, runner-up.

        Names that a spreadsheet would run as a formula get an apostrophe in front.
        """
        best = self.probabilities.topk(min(2, self.probabilities.shape[1]), dim=1)
        rows: list[Sequence[Any]] = [("index", "image", "prediction", "confidence", "second", "second_confidence")]
        for row, number in enumerate(self.index.tolist()):
            name = self.names[row] if self.names else ""
            first, second = (int(k) for k in best.indices[row])
            p, q = (float(v) for v in best.values[row])
            rows.append((number, name, self.classes[first], f"{p:.6f}", self.classes[second], f"{q:.6f}"))
        return write_csv(path, rows)


@dataclass(frozen=True)
class Reference:
    """Source-only under the same recipe: what the guard and both alarms compare with.

    Shapes: ``probabilities`` [n, K] for the target images in their order.
    """

    probabilities: Tensor
    measurements: Mapping[str, float]


@dataclass(frozen=True)
class AdaptationResult:
    """What `convsmith.adaptation.adapt` returns.

    ``model`` holds the selected weights, in eval mode. ``history`` are the loop's rows. ``selected_step`` is the step
    whose weights were kept. ``measurements`` are of these weights: held-out source accuracy and validators, and
    ``oracle_accuracy`` only where target labels were asked for. ``alarms`` and ``warnings`` say what looks wrong.
    """

    model: nn.Module
    method: str
    settings: MethodConfig
    class_weights: Tensor | None
    history: list[dict[str, Any]]
    selected_step: int
    steps: int
    validator: str | None
    measurements: dict[str, float]
    predictions: Predictions
    alarms: tuple[Alarm, ...] = ()
    warnings: tuple[str, ...] = ()
    reference: Reference | None = None
    classes: tuple[str, ...] = ()
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def weight_history(self) -> Tensor:
        """The class weights at every evaluation, [evaluations, K]; nothing for a method without any."""
        names = [f"weight_{k}" for k in range(len(self.classes))]
        return torch.tensor([[row[name] for name in names] for row in self.history if "weight_0" in row])
