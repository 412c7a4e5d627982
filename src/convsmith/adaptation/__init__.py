"""From a labelled source with many classes to an unlabelled target with fewer."""

from convsmith.adaptation.adapt import adapt
from convsmith.adaptation.evaluation import validators
from convsmith.adaptation.evaluation.alarms import Alarm, CollapseRule
from convsmith.adaptation.evaluation.evaluator import EvaluationOptions
from convsmith.adaptation.inputs import InputOptions
from convsmith.adaptation.losses.discrepancy import (
    class_mmd,
    conditional_embedding,
    conditional_mmd,
    coral,
    energy_distance,
    mean_embedding,
    mmd,
)
from convsmith.adaptation.losses.discriminators import ClassDiscriminators
from convsmith.adaptation.losses.reversal import ramp, reverse_gradient
from convsmith.adaptation.losses.selective import entropy, selective_adversarial_loss
from convsmith.adaptation.methods.method import METHODS, DomainTask, MethodConfig, available, method_settings
from convsmith.adaptation.methods.san import VARIANTS, SANVariant
from convsmith.adaptation.methods.weighting import ClassWeights, WeightSettings, class_weights
from convsmith.adaptation.result import AdaptationResult, Predictions, Reference

__all__ = [
    "METHODS",
    "VARIANTS",
    "AdaptationResult",
    "Alarm",
    "ClassDiscriminators",
    "ClassWeights",
    "CollapseRule",
    "DomainTask",
    "EvaluationOptions",
    "InputOptions",
    "MethodConfig",
    "Predictions",
    "Reference",
    "SANVariant",
    "WeightSettings",
    "adapt",
    "available",
    "class_mmd",
    "class_weights",
    "conditional_embedding",
    "conditional_mmd",
    "coral",
    "energy_distance",
    "entropy",
    "mean_embedding",
    "method_settings",
    "mmd",
    "ramp",
    "reverse_gradient",
    "selective_adversarial_loss",
    "validators",
]
