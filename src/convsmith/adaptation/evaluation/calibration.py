"""Confidences that mean something on the target, without its labels: one temperature, weighted by density ratio.

Guo et al., On Calibration of Modern Neural Networks, ICML 2017 (temperature); Park et al., Calibrated Prediction with
Covariate Shift via Unsupervised Domain Adaptation, AISTATS 2020 (importance weights on source images).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from convsmith.adaptation.evaluation.evaluator import finite_features
from convsmith.adaptation.evaluation.validators import density_ratio
from convsmith.adaptation.inputs import Inputs
from convsmith.adaptation.losses import operands
from convsmith.adaptation.losses.operands import matrix, vector
from convsmith.adaptation.result import Predictions
from convsmith.errors import InvalidArgument
from convsmith.inspection.features import Features


def fit_temperature(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float:
    """Return T > 0 that minimises ``sum_i w_i CE(logits_i / T, y_i)``, between 0.05 and 20.

    Shapes: ``logits`` [n, K], ``labels`` [n], ``weights`` [n] (1 if not given). The loss is convex in 1/T.
    """
    if len(matrix("logits", logits)) == 0:
        raise InvalidArgument("calibration needs labelled logits", argument="logits", given="0 images")
    operands.labels("labels", labels, length=len(logits))
    if int(labels.min()) < 0 or int(labels.max()) >= logits.shape[1]:
        raise InvalidArgument("labels count the logits' columns", argument="labels", given=labels.unique().tolist()[:9])
    z = logits.detach().double()
    w = torch.ones(len(z)) if weights is None else vector("weights", weights, length=len(z)).detach()
    if not (float(w.min()) >= 0 and 0 < float(w.sum()) < math.inf):
        given = f"numbers from {float(w.min()):.4g}, of sum {float(w.sum()):.4g}"
        raise InvalidArgument("weights are finite, 0 or more, and not all 0", argument="weights", given=given)
    w = (w / w.sum()).to(z)

    from scipy.optimize import minimize_scalar

    def loss(inverse: float) -> float:
        return float((w * F.cross_entropy(z * inverse, labels, reduction="none")).sum())

    found = minimize_scalar(loss, bounds=(0.05, 20.0), method="bounded", options={"xatol": 1e-5})
    return 1 / float(found.x)


def calibrated(model: nn.Module, inputs: Inputs, source: Features, target: Features) -> Predictions:
    """Return the predictions for every target image; ``source`` and ``target`` are finished passes of ``model``."""
    weights: Tensor | None = None
    if min(len(source.labels), len(target.logits)) >= 20:
        training = finite_features(model, inputs.batches(inputs.source)).features
        weights = density_ratio(
            training.double(), target.features.double(), source.features.double(), limit=1000, inverse_penalty=0.1
        )
        # a few source images must not decide alone
        weights = weights.clamp_max(10 * float(weights.median().clamp_min(1e-6)))
        weights = weights if bool(weights.any()) else None  # the domains are so far apart that no image is nearer
    temperature = fit_temperature(source.logits, source.labels, weights)
    return Predictions(
        index=inputs.target.index,
        probabilities=(target.logits / temperature).softmax(1),
        temperature=temperature,
        classes=inputs.classes,
        names=tuple(inputs.target.name(n) for n in range(len(inputs.target))),
    )
