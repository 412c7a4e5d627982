"""The limited-memory quasi-Newton model of every row at once, in compact form."""

from __future__ import annotations

import torch
from torch import Tensor


def inverse_times(steps: Tensor, changes: Tensor, slope: Tensor, pinned: Tensor, first: Tensor) -> Tensor:
    """Return the inverse of the BFGS model times the slope, [B, total].

    ``steps`` s and ``changes`` y [B, pairs, total] of points and of slopes, the newest last; entries ``pinned``
    [B, total] bool leave the model, pairs without positive curvature are passed over. The first matrix is the identity
    times ``s^T y / y^T y`` of the newest pair; without a pair the largest entry of the product is ``first`` [B]. Byrd,
    Nocedal, Schnabel, Math. Programming 1994, (3.1).
    """
    tiny, pairs = torch.finfo(slope.dtype).tiny, steps.shape[1]
    steps, changes = steps.masked_fill(pinned[:, None], 0.0), changes.masked_fill(pinned[:, None], 0.0)
    product, square = (steps * changes).sum(2), (changes**2).sum(2)
    usable = product > 1e-8 * (square * (steps**2).sum(2)).sqrt()
    steps, changes = steps * usable[:, :, None], changes * usable[:, :, None]
    newest = pairs - 1 - usable.flip(1).to(torch.int8).argmax(1, keepdim=True)
    scale = (product / square.clamp(min=tiny)).gather(1, newest)[:, 0]
    scale = torch.where(usable.any(1), scale, first / slope.abs().amax(1).clamp(min=1e-30))[:, None]
    upper = (steps @ changes.mT).triu() + torch.diag_embed((~usable).to(slope))
    inner = torch.diag_embed(product * usable) + scale[:, :, None] * (changes @ changes.mT)
    along = torch.linalg.solve_triangular(upper, steps @ slope[:, :, None], upper=True)
    right = inner @ along - scale[:, :, None] * (changes @ slope[:, :, None])
    right = torch.linalg.solve_triangular(upper.mT, right, upper=False)
    return scale * slope + (steps.mT @ right - scale[:, :, None] * (changes.mT @ along))[:, :, 0]
