"""DAN: match the kernel mean embeddings of both domains in the features and in the predictions.

Long, Cao, Wang, Jordan, Learning Transferable Features with Deep Adaptation Networks, ICML 2015, eq. 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F

from convsmith.adaptation.losses.discrepancy import mmd
from convsmith.adaptation.methods.method import METHODS, Common, Domains, DomainTask
from convsmith.data.batch import DomainBatch
from convsmith.errors import InvalidArgument
from convsmith.training.task import Losses


@dataclass(frozen=True)
class DANSettings(Common):
    """Settings of DAN.

    Args:
        weight: coefficient of the summed discrepancies at the end of the ramp.
        estimator: see `convsmith.adaptation.mmd`.
        bandwidths: ``"median"`` or ``"mean"``: five kernels around it, anew in every batch.
        layers: discrepancies are measured on the features, on the predicted probabilities, or on both.
        ramp_share: share of all steps after which the full weight is reached.
    """

    weight: float = 1.0
    estimator: Literal["unbiased", "biased", "linear"] = "unbiased"
    bandwidths: Literal["median", "mean"] = "median"
    layers: Literal["features", "predictions", "both"] = "both"
    ramp_share: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.estimator not in ("unbiased", "biased", "linear"):
            raise InvalidArgument("estimator is unbiased, biased or linear", given=repr(self.estimator))
        if self.layers not in ("features", "predictions", "both"):
            raise InvalidArgument("layers is features, predictions or both", given=repr(self.layers))


@METHODS.register("dan", settings=DANSettings, partial=False)
class DAN(DomainTask):
    """Match the features of both domains by maximum mean discrepancy with several kernels.

    Differs from the paper: equal kernel weights; the probabilities stand for its classifier layer.
    """

    def __init__(self, model: nn.Module, domains: Domains, settings: DANSettings) -> None:
        super().__init__(model, domains, settings)
        self.settings = settings

    def forward(self, batch: DomainBatch, step: int) -> Losses:
        """Return source cross-entropy plus the ramped discrepancies, over all ranks."""
        s, seen = self.settings, self.look(batch)
        classification = F.cross_entropy(seen.source_logits, seen.source_labels)
        pairs = []
        if s.layers in ("features", "both"):
            pairs.append((seen.source_features, seen.target_features))
        if s.layers in ("predictions", "both"):
            pairs.append((seen.source_logits.float().softmax(1), seen.target_logits.float().softmax(1)))
        measured = [mmd(a, b, bandwidths=s.bandwidths, estimator=s.estimator, distributed=True) for a, b in pairs]
        discrepancy = torch.stack(measured).sum()
        strength = self.strength(step, s.weight, s.ramp_share)
        return Losses(
            classification + strength * discrepancy, {"classification": classification, "discrepancy": discrepancy}
        )
