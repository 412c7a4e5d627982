"""How often two networks give the same answer: measured, and predicted from an expected error before anything runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from convsmith.inspection.modes import evaluating
from convsmith.inspection.outputs import joined_output

#: predicted or measured share of equal answers below which a person should be warned
WARN_BELOW = 0.9
#: relative squared error of answers that is rounding: on nine networks of timm that came to 6e-9 at the most, and what
#: an activation does to 8e-6 at the least, but for layers that are scaled by 1e-6
HARMLESS = 1e-7
#: draws of the predicted error, and numbers in one at most
_DRAWS, _NUMBERS = 64, 2**19


def is_scores(output: Tensor) -> bool:
    """Return whether an output is class scores [B, K] with K at least 2."""
    return output.dim() == 2 and output.shape[1] >= 2


def agreement(original: nn.Module, other: nn.Module, images: Tensor, *, batch: int = 32) -> float | None:
    """Return the share of images [B, C, H, W] to which both networks give the same class; None without class scores.

    Both run in evaluation mode; no labels are needed. For dense predictions [B, K, H, W] it is the share of positions.
    """
    equal, total = 0, 0
    with evaluating(original), evaluating(other), torch.no_grad():
        for part in images.split(batch):
            a, b = joined_output(original(part)), joined_output(other(part))
            if a.shape != b.shape or a.dim() not in (2, 4) or a.shape[1] < 2:
                return None
            same = a.argmax(1) == b.argmax(1)
            equal, total = equal + int(same.sum()), total + same.numel()
    return equal / total if total else None


def predicted_agreement(scores: Tensor, error: float) -> float:
    """Return the expected share of equal answers if the scores [B, K] move by a relative squared error of ``error``.

    The error is taken as Gaussian, independent of the scores, with the classes' own variances times ``error``: the
    share of draws whose largest entry stays where it was. Of very many scores every n-th image counts.
    """
    scores = scores.detach()[:: -(-scores.numel() // _NUMBERS)].double()
    if len(scores) < 2:
        return 1.0 if error == 0 else float("nan")
    scale = (scores.var(0, correction=0) * max(error, 0.0)).sqrt()
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(_DRAWS, *scores.shape, generator=generator, dtype=torch.float64).to(scores.device)
    return float(((scores + scale * noise).argmax(2) == scores.argmax(1)).double().mean())
