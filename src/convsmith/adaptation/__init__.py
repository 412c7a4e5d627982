"""From a labelled source with many classes to an unlabelled target with fewer."""

from convsmith.adaptation import validators
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
from convsmith.adaptation.reversal import ramp, reverse_gradient
from convsmith.adaptation.selective import PRESETS, SANForm, entropy, preset, selective_adversarial_loss
from convsmith.adaptation.weighting import ClassWeights, WeightSettings, class_weights

__all__ = [
    "PRESETS",
    "ClassDiscriminators",
    "ClassWeights",
    "SANForm",
    "WeightSettings",
    "class_mmd",
    "class_weights",
    "conditional_embedding",
    "conditional_mmd",
    "coral",
    "energy_distance",
    "entropy",
    "mean_embedding",
    "mmd",
    "preset",
    "ramp",
    "reverse_gradient",
    "selective_adversarial_loss",
    "validators",
]
