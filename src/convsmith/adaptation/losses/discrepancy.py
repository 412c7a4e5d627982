"""Distances between two samples: kernel mean embeddings, MMD in its forms, energy distance, CORAL.

Gretton et al., A Kernel Two-Sample Test, JMLR 2012, Lemma 6 (biased, unbiased) and 14 (linear time); Long et al.,
Learning Transferable Features with Deep Adaptation Networks, ICML 2015 (several kernels); Song et al., ICML 2009 and
Ren et al., NeurIPS 2016 (conditional embeddings); Szekely & Rizzo 2013 (energy); Sun & Saenko, ECCV 2016 (CORAL).

All of it is computed in float64 where the device has it, also under autocast, and returned in float32 at least: the
matrices are small, and neither the scale of the features nor a far-away origin costs a digit.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.adaptation.losses.gather import gather
from convsmith.adaptation.losses.operands import matrix, pair, vector
from convsmith.arguments import wide
from convsmith.errors import InvalidArgument

Bandwidths = Sequence[float] | Tensor | Literal["median", "mean"] | None
_POWERS = (-2, -1, 0, 1, 2)


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """Return ``|x_i - y_j|^2`` [n, m] of ``x`` [n, d] and ``y`` [m, d] in float64, exactly 0 where points coincide.

    float32 and less is expanded as ``|x|^2 + |y|^2 - 2xy`` of centred samples: in float64 nothing cancels that float32
    can tell apart. float64, and devices without it, take differences directly (5 to 10 times slower on a CPU).
    """
    if x.dtype == torch.float64 or y.dtype == torch.float64 or x.device.type == "mps":
        return torch.cdist(_precise(x), _precise(y), compute_mode="donot_use_mm_for_euclid_dist").square()
    a, b = x.double(), y.double()
    centre = torch.cat([a, b]).mean(0).detach()
    a, b = a - centre, b - centre
    squares = a.square().sum(1)[:, None] + b.square().sum(1)[None, :]
    distances = squares - 2 * (a @ b.T)
    # below the rounding of the expansion two points are one; NaN is neither and stays
    rounding = 4 * x.shape[1] ** 0.5 * torch.finfo(torch.float64).eps * squares.detach()
    return torch.where(distances <= rounding, 0, distances)


def gaussian_kernel(distances: Tensor, bandwidths: Tensor) -> Tensor:
    """Return the equal-weight mean over ``bandwidths`` b [U] of ``exp(-distances / (2 b^2))``, in the input's shape."""
    scaled = distances[None] / (-2 * bandwidths.to(distances).square()).view(-1, *[1] * distances.dim())
    return scaled.exp().mean(0)


def choose_bandwidths(distances: Tensor, rule: Literal["median", "mean"] = "median") -> Tensor:
    """Return five bandwidths around the middle of the given squared ``distances``, without gradient.

    ``2 b_u^2 = 2^u * middle`` for u = -2..2, the five kernels of factor 2 of the public DAN codes. The median is that
    of the distances above 0: points that coincide say nothing about the scale, and more than half may (dead ReLUs).
    Where all coincide the bandwidths are those of a distance of 1, and every kernel is 1.
    """
    flat = distances.detach().flatten()
    middle = torch.where(flat == 0, torch.nan, flat).nanmedian() if rule == "median" else flat.mean()
    middle = torch.where(middle > 0, middle, 1)
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
            of the distances of this call's different points (no gradient through them).
        estimator: ``"biased"`` averages all pairs, so it is never negative; ``"unbiased"`` leaves out i = j and MAY BE
            NEGATIVE (its expectation is zero for equal distributions); ``"linear"`` averages
            ``k(s1,s2) + k(t1,t2) - k(s1,t2) - k(s2,t1)`` over disjoint quadruples in linear time, unbiased too.
        distributed: gather both sides over all ranks, with gradient, before measuring.

    Differs from the paper: DAN learns the kernel weights by a quadratic program; every public code, and this one, uses
    equal weights.

    Examples:
        >>> distance = mmd(torch.randn(9, 4), torch.randn(7, 4), bandwidths=[1.0, 2.0])
    """
    arguments.one_of("estimator", estimator, ("unbiased", "biased", "linear"))
    source, target = pair(source, target)
    if distributed:
        source, target = gather(source), gather(target)
    n, m = len(source), len(target)
    if estimator == "linear":
        return _linear_mmd(source, target, bandwidths)
    if estimator == "unbiased" and min(n, m) < 2:
        rule = "the unbiased MMD needs two samples on each side"
        raise InvalidArgument(rule, given=f"{n} and {m} samples", hint='give larger batches or take estimator="biased"')
    kernel, like = _joint_kernel(source, target, bandwidths)
    within_s, within_t, across = kernel[:n, :n], kernel[n:, n:], kernel[:n, n:]
    if estimator == "biased":
        return (within_s.mean() + within_t.mean() - 2 * across.mean()).to(like)
    first = (within_s.sum() - within_s.diagonal().sum()) / (n * (n - 1))
    second = (within_t.sum() - within_t.diagonal().sum()) / (m * (m - 1))
    return (first + second - 2 * across.mean()).to(like)


def _joint_kernel(source: Tensor, target: Tensor, bandwidths: Bandwidths) -> tuple[Tensor, torch.dtype]:
    """Return the Gram matrix [n + m, n + m] of both sides, and the dtype of what is made of it."""
    joint = torch.cat([wide(source), wide(target)])
    distances = squared_distances(joint, joint)
    off = ~torch.eye(len(joint), dtype=torch.bool, device=joint.device)
    return gaussian_kernel(distances, _bandwidths(bandwidths, distances[off])), joint.dtype


def _linear_mmd(source: Tensor, target: Tensor, bandwidths: Bandwidths) -> Tensor:
    if len(source) != len(target) or len(source) < 2:
        rule = "the linear-time MMD needs the same number of samples on both sides, two or more"
        hint = 'take estimator="unbiased" for unequal batches'
        raise InvalidArgument(rule, given=f"{len(source)} and {len(target)} samples", hint=hint)
    half = len(source) // 2
    s, t = (_precise(side[: 2 * half]).unflatten(0, (half, 2)) for side in (source, target))
    pairs = torch.stack([s[:, 0] - s[:, 1], t[:, 0] - t[:, 1], s[:, 0] - t[:, 1], s[:, 1] - t[:, 0]])
    distances = pairs.square().sum(-1)
    kernel = gaussian_kernel(distances, _bandwidths(bandwidths, distances))
    return (kernel[0] + kernel[1] - kernel[2] - kernel[3]).mean().to(wide(source).dtype)


def mean_embedding(points: Tensor, samples: Tensor, *, bandwidths: Bandwidths = None) -> Tensor:
    """Return the kernel mean embedding ``mean_i k(x_i, .)`` of ``samples`` [n, d] at ``points`` [p, d], as [p].

    Examples:
        >>> mean_embedding(torch.randn(3, 4), torch.randn(9, 4)).shape
        torch.Size([3])
    """
    points, samples = pair(points, samples, names=("points", "samples"))
    distances = squared_distances(points, samples)
    return gaussian_kernel(distances, _bandwidths(bandwidths, distances)).mean(1).to(wide(samples).dtype)


def conditional_embedding(
    points: Tensor, samples: Tensor, *, ridge: float = 1e-2, bandwidths: Bandwidths = None
) -> Tensor:
    """Return the weights ``beta`` [p, n] of the conditional embedding ``mu_{Y|x} = sum_i beta_i(x) phi(y_i)``.

    ``beta(x) = (K + n * ridge * I)^-1 k_x`` with K the Gram matrix of ``samples`` [n, d] (Song et al. 2009, eq. 6).

    Examples:
        >>> conditional_embedding(torch.randn(3, 4), torch.randn(9, 4)).shape
        torch.Size([3, 9])
    """
    points, samples = pair(points, samples, names=("points", "samples"))
    arguments.number("ridge", ridge, least=torch.finfo(torch.float64).tiny)
    gram = squared_distances(samples, samples)
    eye = torch.eye(len(samples), dtype=gram.dtype, device=gram.device)
    widths = _bandwidths(bandwidths, gram[eye == 0] if len(samples) > 1 else gram)
    system = gaussian_kernel(gram, widths) + len(samples) * ridge * eye
    beta = torch.linalg.solve(system, gaussian_kernel(squared_distances(samples, points), widths))
    return beta.T.to(wide(samples).dtype)


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

    Examples:
        >>> distance = conditional_mmd(torch.randn(9, 4), torch.randn(7, 4), torch.rand(9, 3), torch.rand(7, 3))
    """
    source, target = pair(source, target)
    n, m = len(source), len(target)
    first_outcomes = matrix("source_outcomes", source_outcomes, rows=n)
    second_outcomes = matrix("target_outcomes", target_outcomes, rows=m, columns=first_outcomes.shape[1])
    arguments.number("ridge", ridge, least=torch.finfo(torch.float64).tiny)
    kernel, like = _joint_kernel(source, target, bandwidths)
    first, second = kernel[:n, :n], kernel[n:, n:]
    eye = torch.eye(n + m, dtype=kernel.dtype, device=kernel.device)
    # A_i Y_i: regress the outcomes once per side; the operators need nothing else
    b1 = torch.linalg.solve(first + n * ridge * eye[:n, :n], first_outcomes.to(kernel))
    b2 = torch.linalg.solve(second + m * ridge * eye[n:, n:], second_outcomes.to(kernel))
    value = (b1 * (first @ b1)).sum() + (b2 * (second @ b2)).sum() - 2 * (b1 * (kernel[:n, n:] @ b2)).sum()
    return value.to(like)


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

    Examples:
        >>> distance = class_mmd(torch.randn(9, 4), torch.randn(7, 4), torch.rand(9, 3), torch.rand(7, 3))
    """
    source, target = pair(source, target)
    p_s = matrix("source_probabilities", source_probabilities, rows=len(source))
    p_t = matrix("target_probabilities", target_probabilities, rows=len(target), columns=p_s.shape[1])
    if weights is not None:
        weights = vector("weights", weights, length=p_s.shape[1])
    kernel, like = _joint_kernel(source, target, bandwidths)
    p_s, p_t = p_s.to(kernel), p_t.to(kernel)
    mass_s, mass_t = p_s.sum(0), p_t.sum(0)
    present = ((mass_s > 1e-6) & (mass_t > 1e-6)).to(kernel)
    signed = torch.cat([p_s / mass_s.clamp_min(1e-6), -p_t / mass_t.clamp_min(1e-6)])
    values = (signed * (kernel @ signed)).sum(0) * present
    share = present if weights is None else present * weights.to(kernel)
    return ((values * share).sum() / share.sum().clamp_min(1e-6)).to(like)


def energy_distance(source: Tensor, target: Tensor) -> Tensor:
    """Return ``2 E|x - y| - E|x - x'| - E|y - y'|`` over all pairs of ``source`` [n, d] and ``target`` [m, d].

    Examples:
        >>> float(energy_distance(torch.zeros(3, 2), torch.zeros(4, 2)))
        0.0
    """
    source, target = pair(source, target)
    n = len(source)
    joint = torch.cat([wide(source), wide(target)])
    distances = squared_distances(joint, joint)
    # the root has no slope at zero: coinciding points contribute a distance of 0 and no gradient
    apart = distances != 0
    lengths = torch.where(apart, torch.where(apart, distances, 1).sqrt(), 0)
    return (2 * lengths[:n, n:].mean() - lengths[:n, :n].mean() - lengths[n:, n:].mean()).to(joint.dtype)


def coral(source: Tensor, target: Tensor) -> Tensor:
    """Return ``|C_s - C_t|_F^2 / (4 d^2)`` of the sample covariances (divisor n - 1), a scalar.

    Examples:
        >>> coral(torch.tensor([[0.0], [2.0]]), torch.tensor([[0.0], [0.0]]))
        tensor(1.)
    """
    source, target = pair(source, target)
    if min(len(source), len(target)) < 2:
        raise InvalidArgument("a covariance needs two samples", given=f"{len(source)} and {len(target)} samples")
    difference = torch.cov(_precise(source).T) - torch.cov(_precise(target).T)
    return (difference.square().sum() / (4 * source.shape[1] ** 2)).to(
        torch.promote_types(wide(source).dtype, target.dtype)
    )


def _bandwidths(bandwidths: Bandwidths, distances: Tensor) -> Tensor:
    if bandwidths is None or isinstance(bandwidths, str):
        rule: Any = bandwidths or "median"
        arguments.one_of("bandwidths", rule, ("median", "mean"))
        return choose_bandwidths(distances, rule)
    try:
        widths = torch.as_tensor(bandwidths, dtype=distances.dtype, device=distances.device).flatten()
    except (TypeError, ValueError, RuntimeError):
        widths = distances.new_zeros(0)
    if len(widths) == 0 or not bool(((widths > 0) & torch.isfinite(widths)).all()):
        given = str(bandwidths)[:80]
        raise InvalidArgument("bandwidths are positive numbers, at least one", argument="bandwidths", given=given)
    return widths


def _precise(x: Tensor) -> Tensor:
    return x.float() if x.device.type == "mps" else x.double()
