"""Two alarms that need no target labels: the run collapsed, or the transfer harms.

A collapsed run is confident and low in entropy, so every score built on confidence prefers it. What gives it away is
how few classes it predicts, and how far it has moved from what source-only said about the same images.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convsmith.adaptation.losses.operands import matrix, vector


def effective_classes(mass: Tensor) -> float:
    """Return ``exp(H(mass / sum))`` of non-negative ``mass`` [K]: 1 for one class, K for all alike."""
    p = vector("mass", mass).double() / mass.double().sum()
    return float(torch.special.entr(p).sum().exp())


def prediction_histogram(probabilities: Tensor) -> Tensor:
    """Return the share [K] of images predicted as each class, from probabilities [n, K]."""
    matrix("probabilities", probabilities)
    return torch.bincount(probabilities.argmax(1), minlength=probabilities.shape[1]).double() / len(probabilities)


@dataclass(frozen=True)
class Alarm:
    """One alarm: ``kind`` is ``"collapse"`` or ``"negative-transfer"``, ``message`` says what was measured."""

    kind: str
    message: str


@dataclass(frozen=True)
class CollapseRule:
    """Thresholds of the collapse alarm.

    Args:
        fewest: the smallest number of effective predicted classes that is not suspicious.
        agreement: the smallest share of target images that must keep the label source-only gave them.
        moved: the largest total-variation distance between the predicted class shares of source-only and of this run.

    Set on early runs from UCI to MNIST digits (no healthy run of any method had less agreement than 0.52 or more moved
    than 0.39); the study ``transfer/methods`` says how often they are right on all runs.
    """

    fewest: float = 1.5
    agreement: float = 0.5
    moved: float = 0.42


def collapse_alarm(
    probabilities: Tensor, reference: Tensor | None = None, rule: CollapseRule | None = None
) -> Alarm | None:
    """Return an alarm if the target predictions [n, K] look collapsed, else None.

    ``reference`` [n, K] are source-only's predictions for the same images in the same order; without them only the
    number of predicted classes is looked at, and a confident move to a few wrong classes goes unseen.
    """
    rule = rule or CollapseRule()
    shares = prediction_histogram(probabilities)
    found = []
    number = effective_classes(shares)
    if number < rule.fewest:
        found.append(f"only {number:.2f} effective classes are predicted (fewer than {rule.fewest})")
    if reference is not None:
        same = agreement(probabilities, reference)
        if same < rule.agreement:
            found.append(
                f"{same:.0%} of the images keep the class source-only gave them (less than {rule.agreement:.0%})"
            )
        distance = moved_mass(probabilities, reference)
        if distance > rule.moved:
            found.append(f"{distance:.0%} of the predictions moved to other classes (more than {rule.moved:.0%})")
    return Alarm("collapse", "; ".join(found)) if found else None


def agreement(probabilities: Tensor, reference: Tensor) -> float:
    """Return the share of images to which both predictions [n, K] give the same class."""
    matrix("reference", reference, rows=len(matrix("probabilities", probabilities)))
    return float((probabilities.argmax(1) == reference.argmax(1)).double().mean())


def moved_mass(probabilities: Tensor, reference: Tensor) -> float:
    """Return the total-variation distance of the two prediction histograms, in [0, 1]."""
    return float((prediction_histogram(probabilities) - prediction_histogram(reference)).abs().sum() / 2)


def negative_transfer_alarm(name: str, value: float, reference: float) -> Alarm | None:
    """Return an alarm if this run's score by validator ``name``, higher being better, is below source-only's."""
    if value >= reference:
        return None
    return Alarm(
        "negative-transfer",
        f"the validator {name!r} prefers source-only ({reference:.4g}) to this run ({value:.4g}), higher is better",
    )
