"""Distances between two samples: kernel mean embeddings, MMD in its forms, energy distance, CORAL.

Gretton et al., A Kernel Two-Sample Test, JMLR 2012, Lemma 6 (biased, unbiased) and 14 (linear time); Long et al.,
Learning Transferable Features with Deep Adaptation Networks, ICML 2015 (several kernels); Song et al., ICML 2009 and
Ren et al., NeurIPS 2016 (conditional embeddings); Szekely & Rizzo 2013 (energy); Sun & Saenko, ECCV 2016 (CORAL).

All distances are computed in float32 at least, also under autocast.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from convsmith.adaptation.evaluation.gather import gather
from convsmith.errors import InvalidArgument, close_matches

Bandwidths = Sequence[float] | Tensor | Literal["median", "mean"] | None
_POWERS = (-2, -1, 0, 1, 2)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return ``|x_i - y_j|^2`` [n, m] of ``x`` [n, d] and ``y`` [m, d], never negative.

    Both are centred first, which leaves the distances and keeps ``|x|^2 + |y|^2 - 2xy`` from cancelling far from zero.
    """
    x, y = _wide(x), _wide(y)
    with torch.autocast(x.device.type, enabled=False):
        centre = torch.cat([x, y]).mean(0).detach()
        x, y = x - centre, y - centre
        squares = x.square().sum(1)[:, None] + y.square().sum(1)[None, :]
        return (squares - 2 * (x @ y.T)).clamp_min(0)


def gaussian_kernel(distances: Tensor, bandwidths: Tensor) -> Tensor:
    """Return the equal-weight mean over ``bandwidths`` b [U] of ``exp(-distances / (2 b^2))``, in the input's shape."""
    scaled = distances[None] / (-2 * bandwidths.to(distances).square()).view(-1, *[1] * distances.dim())
    return scaled.exp().mean(0)


def choose_bandwidths(distances: Tensor, rule: Literal["median", "mean"] = "median") -> Tensor:
    """Return five bandwidths around the middle of the given squared ``distances``, without gradient.

    ``2 b_u^2 = 2^u * middle`` for u = -2..2, the five kernels of factor 2 of the public DAN codes.
    """
    flat = distances.detach().flatten()
    middle = (flat.median() if rule == "median" else flat.mean()).clamp_min(torch.finfo(distances.dtype).tiny)
    powers = 2.0 ** torch.tensor(_POWERS, dtype=distances.dtype, device=distances.device)
    return (powers * middle / 2).sqrt()


def mmd(
    source: Tensor,
    target: Tensor,
    *,
    bandwidths: Bandwidths = None,
    estimator: str = "unbiased",
    distributed: bool = False,
) -> Tensor:
    """Return the squared maximum mean discrepancy of ``source`` [n, d] and ``target`` [m, d], a scalar.

    ``E k(x, x') + E k(y, y') - 2 E k(x, y)`` with ``k`` the equal-weight mean of ``exp(-|x-y|^2 / (2 b^2))``.

    Args:
        source: features.
        target: features; unequal numbers are fine for the first two estimators.
        bandwidths: numbers b in the features' units; ``"median"`` (or None) or ``"mean"`` take five around the middle
            of all off-diagonal distances of this call (no gradient through them).
        estimator: ``"biased"`` averages all pairs, so it is never negative; ``"unbiased"`` leaves out i = j and MAY BE
            NEGATIVE (its expectation is zero for equal distributions); ``"linear"`` averages
            ``k(s1,s2) + k(t1,t2) - k(s1,t2) - k(s2,t1)`` over disjoint quadruples in linear time, unbiased too.
        distributed: gather both sides over all ranks, with gradient, before measuring.

    Differs from the paper: DAN learns the kernel weights by a quadratic program; every public code, and this one, uses
    equal weights.
    """
    known = ("unbiased", "biased", "linear")
    if estimator not in known:
        raise InvalidArgument(
            "no MMD estimator has this name",
            argument="estimator",
            given=estimator,
            hint=close_matches(str(estimator), known),
        )
    _check_pair(source, target)
    if distributed:
        source, target = gather(source), gather(target)
    n, m = len(source), len(target)
    if estimator == "linear":
        return _linear_mmd(source, target, bandwidths)
    if estimator == "unbiased" and min(n, m) < 2:
        raise InvalidArgument(
            "the unbiased MMD needs two samples on each side",
            given=f"{n} and {m} samples",
            hint='give larger batches or take estimator="biased"',
        )
    joint = torch.cat([_wide(source), _wide(target)])
    distances = squared_distances(joint, joint)
    off = ~torch.eye(n + m, dtype=torch.bool, device=joint.device)
    widths = _bandwidths(bandwidths, distances[off])
    # exact zeros on the diagonal: rounding there would be a bias of the biased form
    kernel = gaussian_kernel(distances * off, widths)
    within_s, within_t, across = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    if estimator == "biased":
        return within_s.mean() + within_t.mean() - 2 * across.mean()
    first = (within_s.sum() - within_s.diagonal().sum()) / (n * (n - 1))
    second = (within_t.sum() - within_t.diagonal().sum()) / (m * (m - 1))
    return first + second - 2 * across.mean()


def _linear_mmd(source: Tensor, target: Tensor, bandwidths: Bandwidths) -> Tensor:
    if len(source) != len(target) or len(source) < 2:
        raise InvalidArgument(
            "the linear-time MMD needs the same number of samples on both sides, two or more",
            given=f"{len(source)} and {len(target)} samples",
            hint='take estimator="unbiased" for unequal batches',
        )
    half = len(source) // 2
    s, t = _wide(source)[: 2 * half].view(half, 2, -1), _wide(target)[: 2 * half].view(half, 2, -1)
    pairs = torch.stack([s[:, 0] - s[:, 1], t[:, 0] - t[:, 1], s[:, 0] - t[:, 1], s[:, 1] - t[:, 0]])
    distances = pairs.square().sum(-1)
    kernel = gaussian_kernel(distances, _bandwidths(bandwidths, distances))
    return (kernel[0] + kernel[1] - kernel[2] - kernel[3]).mean()


def mean_embedding(points: Tensor, samples: Tensor, *, bandwidths: Bandwidths = None) -> Tensor:
    """Return the kernel mean embedding ``mean_i k(x_i, .)`` of ``samples`` [n, d] at ``points`` [p, d], as [p]."""
    distances = squared_distances(points, samples)
    return gaussian_kernel(distances, _bandwidths(bandwidths, distances)).mean(1)


def conditional_embedding(
    points: Tensor, samples: Tensor, *, ridge: float = 1e-2, bandwidths: Bandwidths = None
) -> Tensor:
    """Return the weights ``beta`` [p, n] of the conditional embedding ``mu_{Y|x} = sum_i beta_i(x) phi(y_i)``.

    ``beta(x) = (K + n * ridge * I)^-1 k_x`` with K the Gram matrix of ``samples`` [n, d] (Song et al. 2009, eq. 6).
    """
    gram = squared_distances(samples, samples)
    widths = _bandwidths(bandwidths, gram)
    system = gaussian_kernel(gram, widths) + len(samples) * ridge * torch.eye(len(samples)).to(gram)
    return torch.linalg.solve(system, gaussian_kernel(squared_distances(samples, points), widths)).T


def conditional_mmd(
    source: Tensor,
    target: Tensor,
    source_outcomes: Tensor,
    target_outcomes: Tensor,
    *,
    ridge: float = 1e-2,
    bandwidths: Bandwidths = None,
) -> Tensor:
    """Return the squared distance of the two conditional operators ``P(outcome | features)``, a scalar.

    ``tr(K_1 A_1 L_1 A_1) + tr(K_2 A_2 L_2 A_2) - 2 tr(K_12 A_2 L_21 A_1)`` with ``A = (K + n * ridge * I)^-1``, K the
    Gaussian Gram matrix of the features and ``L = Y Y^T`` that of the outcomes (Ren et al. 2016, eq. 5).

    Shapes: features [n, d] and [m, d]; outcomes [n, K] and [m, K], one-hot or probabilities.
    """
    _check_pair(source, target)
    n = len(source)
    joint, outcomes = (
        torch.cat([_wide(source), _wide(target)]),
        torch.cat([_wide(source_outcomes), _wide(target_outcomes)]),
    )
    distances = squared_distances(joint, joint)
    kernel = gaussian_kernel(distances, _bandwidths(bandwidths, distances))
    first, second = kernel[:n, :n], kernel[n:, n:]
    eye = torch.eye(len(joint)).to(kernel)
    # A_i Y_i: regress the outcomes once per side; the operators need nothing else
    b1 = torch.linalg.solve(first + n * ridge * eye[:n, :n], outcomes[:n])
    b2 = torch.linalg.solve(second + (len(joint) - n) * ridge * eye[n:, n:], outcomes[n:])
    return (b1 * (first @ b1)).sum() + (b2 * (second @ b2)).sum() - 2 * (b1 * (kernel[:n, n:] @ b2)).sum()


def class_mmd(
    source: Tensor,
    target: Tensor,
    source_probabilities: Tensor,
    target_probabilities: Tensor,
    *,
    weights: Tensor | None = None,
    bandwidths: Bandwidths = None,
) -> Tensor:
    """Return the mean over classes of the biased squared MMD between the class-weighted samples, a scalar.

    Class k compares ``sum_i p_i^k phi(x_i) / sum_i p_i^k`` of both sides (labels as one-hot, pseudo-labels as
    probabilities). Classes without mass on one side are left out; ``weights`` [K] makes the mean a weighted one.
    """
    _check_pair(source, target)
    joint = torch.cat([_wide(source), _wide(target)])
    distances = squared_distances(joint, joint)
    kernel = gaussian_kernel(distances, _bandwidths(bandwidths, distances))
    mass_s, mass_t = _wide(source_probabilities).sum(0), _wide(target_probabilities).sum(0)
    present = ((mass_s > 1e-6) & (mass_t > 1e-6)).to(kernel)
    signed = torch.cat(
        [source_probabilities / mass_s.clamp_min(1e-6), -target_probabilities / mass_t.clamp_min(1e-6)]
    ).to(kernel)
    values = (signed * (kernel @ signed)).sum(0) * present
    share = present if weights is None else present * weights.to(kernel)
    return (values * share).sum() / share.sum().clamp_min(1e-6)


def energy_distance(source: Tensor, target: Tensor) -> Tensor:
    """Return ``2 E|x - y| - E|x - x'| - E|y - y'|`` over all pairs of ``source`` [n, d] and ``target`` [m, d]."""
    _check_pair(source, target)
    n = len(source)
    joint = torch.cat([_wide(source), _wide(target)])
    distances = squared_distances(joint, joint)
    off = ~torch.eye(len(joint), dtype=torch.bool, device=joint.device) & (distances > 0)
    # the root has no slope at zero: coinciding points contribute a distance of 0 and no gradient
    lengths = torch.where(off, torch.where(off, distances, 1).sqrt(), 0)
    return 2 * lengths[:n, n:].mean() - lengths[:n, :n].mean() - lengths[n:, n:].mean()


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Return ``|C_s - C_t|_F^2 / (4 d^2)`` of the sample covariances (divisor n - 1), a scalar."""
    _check_pair(source, target)
    if min(len(source), len(target)) < 2:
        raise InvalidArgument("a covariance needs two samples", given=f"{len(source)} and {len(target)} samples")
    difference = _covariance(_wide(source)) - _covariance(_wide(target))
    return difference.square().sum() / (4 * source.shape[1] ** 2)


def _covariance(x: Tensor) -> Tensor:
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def _bandwidths(bandwidths: Bandwidths, distances: Tensor) -> Tensor:
    if bandwidths is None or isinstance(bandwidths, str):
        rule = bandwidths or "median"
        if rule not in ("median", "mean"):
            raise InvalidArgument(
                "no bandwidth rule has this name", argument="bandwidths", given=rule, hint='numbers, "median" or "mean"'
            )
        return choose_bandwidths(distances, rule)
    widths = torch.as_tensor(bandwidths, dtype=distances.dtype, device=distances.device).flatten()
    if len(widths) == 0 or not bool((widths > 0).all()):
        raise InvalidArgument(
            "bandwidths are positive numbers, at least one", argument="bandwidths", given=widths.tolist()
        )
    return widths


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


def _check_pair(source: Tensor, target: Tensor) -> None:
    if source.dim() != 2 or target.dim() != 2 or source.shape[1] != target.shape[1]:
        raise InvalidArgument(
            "both sides are features [n, d] of the same width d",
            given=f"{tuple(source.shape)} and {tuple(target.shape)}",
        )
    if len(source) == 0 or len(target) == 0:
        raise InvalidArgument("both sides need at least one sample", given=f"{len(source)} and {len(target)} samples")
