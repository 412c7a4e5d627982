"""One training loop over `Task` objects, checkpoints that survive a kill, evaluation with intervals."""

from __future__ import annotations

from convsmith.training.classification import ClassificationTask, distillation_loss
from convsmith.training.config import TrainConfig
from convsmith.training.evaluation import (
    Metrics,
    bootstrap_interval,
    classification_metrics,
    expected_calibration_error,
    predict,
    predict_split,
)
from convsmith.training.freezing import freeze, norms
from convsmith.training.linear_probe import linear_probe
from convsmith.training.loop import fit
from convsmith.training.machine import rank_and_world, resolve_device
from convsmith.training.run import FitResult
from convsmith.training.task import Losses, Task

__all__ = [
    "ClassificationTask",
    "FitResult",
    "Losses",
    "Metrics",
    "Task",
    "TrainConfig",
    "bootstrap_interval",
    "classification_metrics",
    "distillation_loss",
    "expected_calibration_error",
    "fit",
    "freeze",
    "linear_probe",
    "norms",
    "predict",
    "predict_split",
    "rank_and_world",
    "resolve_device",
]
