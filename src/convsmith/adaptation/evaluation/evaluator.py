"""Measure a model on held-out source images and on the bare target: what selection, alarms and the log need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn

from convsmith import arguments
from convsmith.adaptation.evaluation.alarms import (
    Alarm,
    CollapseRule,
    agreement,
    collapse_alarm,
    effective_classes,
    moved_mass,
    negative_transfer_alarm,
    prediction_histogram,
)
from convsmith.adaptation.evaluation.validators import VALIDATORS, Evidence, guarded, measure, oriented
from convsmith.adaptation.result import Reference
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument, RunFailed
from convsmith.inspection.features import Features, extract_features

#: what a candidate behind the guard scores; finite, since histories are JSON
EXCLUDED = -1e9


def finite_features(model: nn.Module, batches: Iterable[Batch]) -> Features:
    """Return features, logits and labels of all images; raises `RunFailed` where training has spoiled the network."""
    found = extract_features(model, batches)
    if not bool(found.features.isfinite().all() & found.logits.isfinite().all()):
        hint = "lower the learning rate, warm up, clip gradients, or use fp32"
        raise RunFailed("the network's features are no longer finite", given="NaN or infinity", hint=hint)
    return found


@dataclass(frozen=True)
class EvaluationOptions:
    """How a run is judged while it trains.

    Args:
        validator: choose the step by this score, computed at every evaluation; None keeps the last step. ``"oracle"``
            uses target labels and needs ``use_target_labels``.
        num_evals: passes over held-out source and whole target images in a run, for selection, alarms in the log and
            history; a ``config`` with ``evaluate_every`` decides instead.
        use_target_labels: also measure ``oracle_accuracy`` on the target's labels; only ``"oracle"`` selects by it.
        collapse: thresholds of the collapse alarm.
    """

    validator: str | None = None
    num_evals: int = 10
    use_target_labels: bool = False
    collapse: CollapseRule = field(default_factory=CollapseRule)

    def __post_init__(self) -> None:
        arguments.integer("num_evals", self.num_evals, least=1)
        arguments.one_of("use_target_labels", self.use_target_labels, (True, False))
        arguments.of_type("collapse", self.collapse, CollapseRule)
        oracle = self.validator is not None and VALIDATORS.entry(self.validator).traits["uses_target_labels"]
        if oracle and not self.use_target_labels:
            rule = f"the validator {self.validator!r} uses target labels"
            raise InvalidArgument(rule, argument="validator", hint="say use_target_labels=True as well")


@dataclass(frozen=True)
class Evaluator:
    """Called by the loop at every evaluation; ``selection`` in its result is what the best step is chosen by.

    Args:
        target: all target images, labels -1.
        source_training: source images for validators that compare densities.
        options: which validator selects, and the thresholds of the collapse alarm.
        reference: source-only's predictions and measurements, for the guard and the alarms in the log.
        target_labels: only where the caller asked for an oracle; they are reported as ``oracle_accuracy``.
    """

    target: Iterable[Batch]
    source_training: Iterable[Batch]
    options: EvaluationOptions
    reference: Reference | None = None
    target_labels: Tensor | None = None

    def __call__(self, model: nn.Module, batches: Iterable[Batch]) -> dict[str, float]:
        """Return all measurements of ``model``; ``batches`` are held-out source images."""
        source, target = finite_features(model, batches), finite_features(model, self.target)
        return self.compute_metrics(model, source, target)

    def compute_metrics(self, model: nn.Module, source: Features, target: Features) -> dict[str, float]:
        """Return all measurements from finished passes."""
        p, chosen, training = target.logits.softmax(1), self.options.validator, None
        names = sorted({"entropy", "infomax", chosen or "infomax"})
        if any("source_training_features" in VALIDATORS.entry(name).traits["needs"] for name in names):
            training = finite_features(model, self.source_training).features
        evidence = Evidence(
            target_probabilities=p,
            target_features=target.features,
            source_probabilities=source.logits.softmax(1),
            source_features=source.features,
            source_labels=source.labels,
            source_training_features=training,
            target_labels=self.target_labels,
        )
        accuracy = measure("source-accuracy", evidence)
        found = {
            "source_accuracy": accuracy,
            "target_entropy": measure("entropy", evidence),
            "effective_classes": effective_classes(prediction_histogram(p)),
        }
        for name in names:
            found[name] = measure(name, evidence)
        if self.target_labels is not None:
            found["oracle_accuracy"] = measure("oracle", evidence)
        found["selection"] = accuracy if chosen is None else oriented(chosen, found[chosen])
        if self.reference is not None:
            if chosen is not None and not guarded(accuracy, self.reference.measurements["source_accuracy"]):
                found["selection"] = EXCLUDED
            raised = {alarm.kind for alarm in self.alarms(p, found)}
            found["agreement"] = agreement(p, self.reference.probabilities)
            found["moved"] = moved_mass(p, self.reference.probabilities)
            found["collapse_alarm"] = float("collapse" in raised)
            found["negative_transfer_alarm"] = float("negative-transfer" in raised)
        return found

    def alarms(self, probabilities: Tensor, found: Mapping[str, float]) -> tuple[Alarm, ...]:
        """Return the alarms of target ``probabilities`` [n, K] with these measurements.

        Negative transfer is judged by the validator that selects, and by InfoMax where none does or target labels do.
        """
        base, chosen = self.reference, self.options.validator
        raised = [collapse_alarm(probabilities, None if base is None else base.probabilities, self.options.collapse)]
        judge = "infomax" if chosen is None or chosen == "oracle" else chosen
        if base is not None and judge in base.measurements:
            ours, theirs = (oriented(judge, float(m[judge])) for m in (found, base.measurements))
            raised.append(negative_transfer_alarm(judge, ours, theirs))
        return tuple(alarm for alarm in raised if alarm is not None)
