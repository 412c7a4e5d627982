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


#: share of the network's own answer in the cross-entropy beside a blank; the rest is what the image adds to the blank's
OWN = 0.25
#: lead of the predicted class, in logits, below which `evaluate` asks for more of it where told to, at most
ROOM = 0.1


@dataclass(frozen=True)
class Evaluation:
    """One pass: ``kept`` [B] bool, the prediction stays; ``cross_entropy`` [B] as the problem counts it; what was
    followed [B], and the gradient [B, total] of that.
    """

    kept: Tensor
    cross_entropy: Tensor
    followed: Tensor
    gradient: Tensor


def evaluate(
    network: GatedNetwork,
    gates: Tensor,
    probabilities: Tensor,
    *,
    floor: float = 0.0,
    blank: Tensor | None = None,
    target: Tensor | None = None,
    hold: tuple[Tensor, Tensor] | None = None,
) -> Evaluation:
    """Run the gated network forward and backward once.

    ``floor`` is added to q inside the logarithm, as published (1e-20). With ``blank`` and ``target`` [B, K] from
    `beside_blank`, ``network`` holds the images and then a blank beside each. What is followed is the cross-entropy
    and, with ``hold``, a stiffness [B] and a lead [B] in logits (`headroom`), half of the stiffness times the square of
    the share of that lead which the predicted class lacks (in both answers beside a blank).

    Raises:
        InvalidArgument: the output does not depend on the gates through autograd.
    """
    gates = gates.detach().requires_grad_(True)
    logits = network.logits(gates if blank is None else gates.repeat(2, 1))
    if not logits.requires_grad:
        raise InvalidArgument(
            "the output does not depend on the gates in a way autograd can follow",
            given=type(network.model).__name__,
            hint="look for torch.no_grad, detach or inference_mode inside the network's forward",
        )
    label = probabilities.argmax(1)
    answers = [logits]
    if blank is None or target is None:
        log_q = torch.log(logits.softmax(1) + floor) if floor else logits.log_softmax(1)
        entropy = -(probabilities * log_q).sum(1)
    else:
        alone, constant = logits.chunk(2)
        answers = [alone, alone - constant + blank]
        itself, image = (-(p * z.log_softmax(1)).sum(1) for p, z in zip((probabilities, target), answers, strict=True))
        entropy = image + OWN * (itself - image)
    followed = entropy
    if hold is not None:
        stiffness, ahead = hold
        lacks = sum((1 - lead(z, label[:, None]) / ahead).clamp(min=0) ** 2 for z in answers)
        followed = entropy + stiffness / 2 * lacks
    (gradient,) = torch.autograd.grad(followed.sum(), gates)
    kept = torch.stack([z.argmax(1) == label for z in answers]).all(0)
    return Evaluation(kept, entropy.detach(), followed.detach(), gradient)


def lead(logits: Tensor, label: Tensor) -> Tensor:
    """Return by how much [B] the logits [B, K] of ``label`` [B, 1] exceed the largest other."""
    return logits.gather(1, label)[:, 0] - logits.scatter(1, label, -torch.inf).amax(1)


def beside_blank(probabilities: Tensor, blank: Tensor) -> tuple[Tensor, Tensor]:
    """Return what `evaluate` compares with and adds, [B, K] each, from p of the images and the blanks' logits.

    Both as given, unless the blank alone is predicted like the image and with a smaller lead over the other classes:
    then the predicted class loses the mean of the two leads in both, so that only what the image adds makes it win.
    """
    full, label = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log(), probabilities.argmax(1)[:, None]
    leads = [lead(z, label)[:, None] for z in (full, blank)]
    less = torch.where((leads[1] >= 0) & (leads[0] > leads[1]), (leads[0] + leads[1]) / 2, 0.0)
    off = torch.zeros_like(full).scatter(1, label, less)
    return (full - off).softmax(1), blank - off


def least_cross_entropy(probabilities: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the least cross-entropy [B] that gates can have, the entropy of what it compares with (Gibbs).

    No objective is lower, and all gates at 1 have this cross-entropy. ``target`` as in `evaluate`.
    """
    itself, image = (
        -(p * p.clamp(min=torch.finfo(p.dtype).tiny).log()).sum(1)
        for p in (probabilities, probabilities if target is None else target)
    )
    return image + OWN * (itself - image)


def headroom(probabilities: Tensor, target: Tensor | None = None) -> Tensor:
    """Return the lead [B] that `evaluate` keeps: 0.1 logits, or the full network's own where that is less.

    The smaller of the two beside a blank, ``target`` as in `evaluate`.
    """
    numbers, label = torch.finfo(probabilities.dtype), probabilities.argmax(1)[:, None]
    compared = (probabilities,) if target is None else (probabilities, target)
    leads = [lead(p.clamp(min=numbers.tiny).log(), label) for p in compared]
    return torch.stack(leads).amin(0).clamp(10 * numbers.eps, ROOM)
