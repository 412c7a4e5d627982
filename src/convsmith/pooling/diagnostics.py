"""What a covariance pooling sees: the spectrum of the features, and what the iteration makes of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.errors import InvalidArgument
from convsmith.pooling.covariance import covariance
from convsmith.pooling.inputs import columns


@dataclass(frozen=True)
class Diagnostics:
    """Means over the samples of a batch that are not constant; eigenvalues are those of covariance / trace.

    ``positions`` and ``channels`` give the size; ``rank`` counts eigenvalues above d eps times the largest;
    ``effective_rank`` is exp of the entropy of the shares; ``condition`` the largest over the smallest counted
    eigenvalue (geometric mean); ``shares`` [d] the share of energy per eigenvalue, largest first; ``response`` [d]
    what the iteration keeps of each exact root, y / sqrt(a); ``residual`` is |Y^2 - A|_F / |A|_F; ``growth`` the
    largest eigenvalue of the inverse root, at most (3/2)^N; ``dead`` the number of samples left out.
    """

    channels: int
    positions: int
    iterations: int
    samples: int
    dead: int
    rank: float
    effective_rank: float
    condition: float
    residual: float
    growth: float
    shares: tuple[float, ...]
    response: tuple[float, ...]


@torch.no_grad()
def diagnose(x: Tensor, *, iterations: int = 5) -> Diagnostics:
    """Measure the spectra of features ``[B, C, H, W]`` or ``[B, C, M]`` and ``iterations`` Newton-Schulz steps on them.

    Computed in float64. Raises `InvalidArgument` as `convsmith.pooling.covariance` does, and if every sample is
    constant.
    """
    arguments.integer("iterations", iterations, least=1)
    x = columns(x, "diagnose").double()
    values = torch.linalg.eigvalsh(covariance(x)).clamp(min=0).flip(1)
    trace = values.sum(1, keepdim=True)
    alive = trace[:, 0] > 0
    if not bool(alive.any()):
        raise InvalidArgument("every sample is constant over its positions", argument="diagnose", given=tuple(x.shape))
    a = values[alive] / trace[alive]
    d = a.shape[1]
    counted = a > d * torch.finfo(a.dtype).eps * a[:, :1]
    entropy = -(a * torch.where(counted, a, 1.0).log()).sum(1)
    smallest = torch.where(counted, a, torch.inf).amin(1)
    y, z = a, torch.ones_like(a)
    for _ in range(iterations):
        t = 0.5 * (3.0 - z * y)
        y, z = y * t, z * t
    response = torch.where(counted, y / torch.where(counted, a, 1.0).sqrt(), 0.0)
    return Diagnostics(
        channels=d,
        positions=x.shape[2],
        iterations=iterations,
        samples=len(x),
        dead=int((~alive).sum()),
        rank=float(counted.sum(1).double().mean()),
        effective_rank=float(entropy.exp().mean()),
        condition=float((a[:, 0] / smallest).log().mean().exp()),
        residual=float(((y * y - a).norm(dim=1) / a.norm(dim=1)).mean()),
        growth=float(z.amax(1).mean()),
        shares=tuple(a.mean(0).tolist()),
        response=tuple(response.mean(0).tolist()),
    )
