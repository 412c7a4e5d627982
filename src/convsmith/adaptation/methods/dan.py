"""DAN: match the kernel mean embeddings of both domains in the features and in the predictions.

Long, Cao, Wang, Jordan, Learning Transferable Features with Deep Adaptation Networks, ICML 2015, eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch

from convsmith.adaptation.losses.discrepancy import mmd
from convsmith.adaptation.methods.method import METHODS, DomainFeatures, DomainTask, PairConfig, Terms
from convsmith.arguments import wide


@dataclass(frozen=True)
class DANSettings(PairConfig):
    """Settings of DAN.

    Args:
        weight: coefficient of the summed discrepancies at the end of the ramp.
        estimator: see `convsmith.adaptation.mmd`.
        bandwidths: ``"median"`` or ``"mean"``: five kernels around it, anew in every batch.
        layers: discrepancies are measured on the features, on the predicted probabilities, or on both.
        ramp: share of all steps after which the full weight is reached.
    """

    weight: float = 1.0
    estimator: Literal["unbiased", "biased", "linear"] = "unbiased"
    bandwidths: Literal["median", "mean"] = "median"
    layers: Literal["features", "predictions", "both"] = "both"
    ramp: float = 1.0


@METHODS.register("dan", settings=DANSettings, partial=False)
class DAN(DomainTask):
    """Match the features of both domains by maximum mean discrepancy with several kernels.

    Differs from the paper: equal kernel weights; the probabilities stand for its classifier layer.
    """

    def terms(self, both: DomainFeatures, step: int) -> Terms:
        s, pairs = self.settings, []
        if s.layers in ("features", "both"):
            pairs.append((both.source_features, both.target_features))
        if s.layers in ("predictions", "both"):
            pairs.append((wide(both.source_logits).softmax(1), wide(both.target_logits).softmax(1)))
        measured = [mmd(a, b, bandwidths=s.bandwidths, estimator=s.estimator, distributed=True) for a, b in pairs]
        return {
            "classification": (1.0, both.cross_entropy()),
            "discrepancy": (self.grl_coeff(step, s.weight, s.ramp), torch.stack(measured).sum()),
        }
