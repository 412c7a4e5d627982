"""The problem every solver works on: cross-entropy to the full network plus a weight on the sum of the gates.

For every image b on its own, over gates 0 <= lambda <= upper,

    L_b(lambda) = - sum_c p_bc log q_bc(lambda) + gamma_b * sum_k lambda_bk,      p = softmax of the full network,
                                                                                 q = softmax of the gated network,

among the points whose predicted class is the full network's. All ones is always such a point, and the gradient of the
cross-entropy is 0 there. Paper: Wang, Su, Zhang, Hu, "Interpret Neural Networks by Identifying Critical Data Routing
Paths", CVPR 2018, section 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convsmith.errors import InvalidArgument
from convsmith.interpretation.gates import GatedNetwork


@dataclass(frozen=True)
class Solution:
    """Gates [B, total], objective [B] at them, passes [B] (forward and backward), converged [B] bool."""

    gates: Tensor
    objective: Tensor
    passes: Tensor
    converged: Tensor


@dataclass(frozen=True)
class Evaluation:
    """One pass: logits [B, K], cross-entropy [B], and the gradient [B, total] of the cross-entropy."""

    logits: Tensor
    cross_entropy: Tensor
    gradient: Tensor


def evaluate(network: GatedNetwork, gates: Tensor, probabilities: Tensor, *, floor: float = 0.0) -> Evaluation:
    """Run the gated network forward and backward once.

    ``floor`` is added to q inside the logarithm, as published (1e-20).

    Raises:
        InvalidArgument: the output does not depend on the gates through autograd.
    """
    gates = gates.detach().requires_grad_(True)
    logits = network.logits(gates)
    if not logits.requires_grad:
        raise InvalidArgument(
            "the output does not depend on the gates in a way autograd can follow",
            given=type(network.model).__name__,
            hint="look for torch.no_grad, detach or inference_mode inside the network's forward",
        )
    log_q = torch.log(logits.softmax(1) + floor) if floor else logits.log_softmax(1)
    entropy = -(probabilities * log_q).sum(1)
    (gradient,) = torch.autograd.grad(entropy.sum(), gates)
    return Evaluation(logits.detach(), entropy.detach(), gradient)
