"""From a labelled source with many classes to an unlabelled target with fewer."""

from convsmith.adaptation import (
    adda,
    afn,
    arpm,
    ba3us,
    cdan,
    dan,
    dann,
    etn,
    iwan,
    pada,
    san,
    source_only,
    validators,
)
from convsmith.adaptation.adapt import adapt
from convsmith.adaptation.alarms import Alarm, CollapseRule
from convsmith.adaptation.discrepancy import (
    class_mmd,
    conditional_embedding,
    conditional_mmd,
    coral,
    energy_distance,
    mean_embedding,
    mmd,
)
from convsmith.adaptation.discriminators import ClassDiscriminators
from convsmith.adaptation.method import METHODS, DomainTask, available, method_settings
from convsmith.adaptation.result import AdaptationResult, Predictions, Reference
from convsmith.adaptation.reversal import ramp, reverse_gradient
from convsmith.adaptation.selective import PRESETS, SANForm, entropy, preset, selective_adversarial_loss
from convsmith.adaptation.weighting import ClassWeights, WeightSettings, class_weights

# importing a method's file registers it
_METHOD_FILES = (adda, afn, arpm, ba3us, cdan, dan, dann, etn, iwan, pada, san, source_only)

__all__ = [
    "METHODS",
    "PRESETS",
    "AdaptationResult",
    "Alarm",
    "ClassDiscriminators",
    "ClassWeights",
    "CollapseRule",
    "DomainTask",
    "Predictions",
    "Reference",
    "SANForm",
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
    "preset",
    "ramp",
    "reverse_gradient",
    "selective_adversarial_loss",
    "validators",
]
