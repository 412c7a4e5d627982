"""Features straight to the normalised root of their covariance, on the cheaper side.

With X centred (d x M) the covariance ``X X^T / M`` and the Gram matrix ``X^T X / M`` share their non-zero spectrum
and their trace. For every polynomial q, ``X X^T q(X X^T) = X q(X^T X) X^T``, and all schemes of
`convsmith.pooling.product_form` have the form A q(A). So the whole iteration may run on M x M matrices: the same
iterates, the same normalisation. A 7 x 7 map of 256 channels costs a hundredth of the work.

Paper: Li et al. (CVPR 2018), sections 3.1 to 3.3 and the gradients of its section 3.4.
Differs from the paper: the Gram side, the number of matrix products, no stored chain on the channel side (the backward
pass runs the iteration again and pulls the gradient back through it), and defined results where the paper's are 0/0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.pooling import product_form
from convsmith.pooling.covariance import is_signal
from convsmith.pooling.inputs import columns, float32_island, is_plain, is_traced, power_of_two
from convsmith.pooling.minimax import minimax_root
from convsmith.pooling.newton_schulz import newton_schulz_steps, warn_if_unsafe
from convsmith.pooling.product_form import Step, eye_like, product_of, pull_back, symmetric_product

#: large matrices go through in groups of so many samples on a CPU: what one product wrote is still in the cache when
#: the next one reads it (measured at 196 x 196, batch 16, two threads: 58 ms instead of 68)
CPU_CHUNK = 4
SIDES = ("auto", "channels", "positions")


def isqrt_covariance(x: Tensor, *, iterations: int = 5, side: str = "auto") -> Tensor:
    """Return ``sqrt(t) Y_N(Sigma / t)``, the compensated Newton-Schulz root of the covariance Sigma with trace t.

    Shapes: ``[B, C, H, W]`` or ``[B, C, M]`` -> ``[B, C, C]``, symmetric. ``side`` forces the iteration onto C x C
    (``"channels"``) or M x M matrices (``"positions"``); ``"auto"`` takes the cheaper. The backward pass finds the
    iterates stored where they take less than half of what the published one stores, and else computes them again.

    A map that is zero, constant (up to rounding) or has one position gives zeros and a zero gradient; no sample
    influences another. Double-differentiable. Raises `InvalidArgument` on a wrong rank or type, no position, values
    that are not finite, ``iterations < 1`` or an unknown side; warns when the iterations exceed what the type
    carries.

    Examples:
        >>> isqrt_covariance(torch.randn(2, 8, 4, 4)).shape
        torch.Size([2, 8, 8])
    """
    steps = newton_schulz_steps(iterations)
    arguments.one_of("side", side, SIDES)
    warn_if_unsafe(iterations, torch.float64 if getattr(x, "dtype", None) == torch.float64 else torch.float32)
    return covariance_root(x, steps, side=side)


@float32_island
def covariance_root(x: Tensor, steps: tuple[Step, ...], *, side: str = "auto") -> Tensor:
    """Return the compensated root of the trace-normalised covariance by any product scheme, as `isqrt_covariance`.

    Minimax steps (quadratics) go through `convsmith.pooling.minimax`, which keeps their large coefficients from
    multiplying rounding.
    """
    x = columns(x, "isqrt_covariance")
    size = power_of_two(x)
    return _unscaled_root(x / size, steps, side) * size


def _unscaled_root(x: Tensor, steps: tuple[Step, ...], side: str) -> Tensor:
    d, m = x.shape[1], x.shape[2]
    if any(step.squarings == 1 for step in steps):
        unit, _, _, root_trace = _unit(x)
        return minimax_root(unit, steps, side == "positions" or (side == "auto" and m < d)) * root_trace
    positions = side == "positions" or (side == "auto" and prefers_positions(d, m, len(steps)))
    if is_traced(x):
        return _forward(x, steps, positions)[0]
    keep = worth_keeping(d, m, steps, positions)
    if is_plain(x) and min(d, m if positions else d) >= 128 and len(x) > CPU_CHUNK:
        parts = [_CovarianceRoot.apply(part, steps, positions, keep)[0] for part in x.split(CPU_CHUNK)]
        return torch.cat(parts)
    return _CovarianceRoot.apply(x, steps, positions, keep)[0]


def prefers_positions(d: int, m: int, steps: int) -> bool:
    """Say whether M x M iterations save a fifth of d x d ones, products with X included, forward and backward."""
    iteration = 15 * max(steps, 1)
    return iteration * m**3 + 5 * d * m * m + 2 * d * d * m < 0.8 * (iteration * d**3 + 2 * d * d * m)


def worth_keeping(d: int, m: int, steps: tuple[Step, ...], positions: bool) -> bool:
    """Say whether the iterates take less than half of what the published backward pass stores."""
    n = m if positions else d
    kept = product_form.kept_matrices(steps, root=not positions) * n * n
    iterations = sum(2 if step.squarings else 1 for step in steps)
    published = (2 * iterations + 3) * d * d
    return kept + d * m <= (published + d * m) / 2


def _unit(x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x centred and of Frobenius norm one per sample, its mean, the scale, sqrt(trace of the covariance)."""
    m = x.shape[2]
    mean = x.mean(2, keepdim=True)
    centred = x - mean
    energy = centred.square().sum((1, 2), keepdim=True)
    alive = is_signal(energy, mean, m)
    scale = torch.where(alive, torch.where(alive, energy, 1.0).rsqrt(), 0.0)
    return centred * scale, mean, scale, energy * scale * (1.0 / math.sqrt(m))


def _forward(x: Tensor, steps: tuple[Step, ...], positions: bool) -> tuple[Tensor, ...]:
    """Return the root, mean and scale of the features, and the chain of `product_form.run`."""
    unit, mean, scale, root_trace = _unit(x)
    if positions:
        z, chain = product_form.run(symmetric_product(unit.mT, unit), steps, root=False, symmetric=True)
        out = symmetric_product(torch.bmm(unit * root_trace, z), unit.mT)
    else:
        y, chain = product_form.run(symmetric_product(unit, unit.mT), steps, root=True, symmetric=True)
        out = y * root_trace
    return out, mean, scale, *chain


def _gradient(g: Tensor, unit: Tensor, chain: Sequence[Tensor], steps: tuple[Step, ...], positions: bool) -> Tensor:
    """Gradient with respect to x for the cotangent ``g`` of the root (any square matrix), from X of unit norm.

    An empty ``chain`` is computed again.
    With out = r F(X / |X|), r = |X| / sqrt(M) and D the gradient of F at the unit matrix, the gradient is
    ``(D + (<g, F> - <D, X>) X) / sqrt(M)``: it does not depend on the size of x.
    """
    share = 1.0 / math.sqrt(unit.shape[2])
    if chain:
        a = torch.add(chain[0], eye_like(chain[0]), alpha=steps[0].centre)
        product = product_of(chain, steps, not positions)
    else:
        a = symmetric_product(unit.mT, unit) if positions else symmetric_product(unit, unit.mT)
        product, chain = product_form.run(a, steps, root=not positions, symmetric=True)
    if not positions:
        twice = g + g.mT
        pulled = pull_back(chain, steps, True, twice)
        c = _inner(pulled, a) - 0.5 * _inner(twice, product)
        return torch.bmm(_less_identity(pulled, c) * share, unit)
    if 2 * unit.shape[2] < unit.shape[1]:
        # two thin products are cheaper than a pass over a transposed d x d matrix
        through = torch.baddbmm(torch.bmm(g, unit), g.mT, unit)
    else:
        through = torch.bmm(g + g.mT, unit)
    middle = symmetric_product(unit.mT, through)
    pulled = pull_back(chain, steps, False, middle)
    c = 0.5 * _inner(middle, product) + _inner(a, pulled)
    return torch.baddbmm(torch.bmm(through, product), unit, _less_identity(pulled, c), beta=share, alpha=share)


def _less_identity(a: Tensor, c: Tensor) -> Tensor:
    return torch.addcmul(a, eye_like(a), c, value=-1.0)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum((1, 2), keepdim=True)


class _CovarianceRoot(torch.autograd.Function):
    """x -> (root, mean, scale, kept chain ...); only the root carries a gradient."""

    @staticmethod
    def forward(x: Tensor, steps: tuple[Step, ...], positions: bool, keep: bool) -> tuple[Tensor, ...]:
        done = _forward(x, steps, positions)
        return done if keep else done[:3]

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        x, ctx.steps, ctx.positions, _ = inputs
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, *output[1:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        g = grads[0]
        if g is None:
            return None, None, None, None
        x, mean, scale, *chain = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            if torch.is_grad_enabled():
                # a second derivative is wanted: everything again from x, in differentiable operations
                return _gradient(g, _unit(x)[0], (), ctx.steps, ctx.positions), None, None, None
            return _gradient(g, (x - mean) * scale, chain, ctx.steps, ctx.positions), None, None, None

    @staticmethod
    def vmap(
        _info: Any, in_dims: tuple[int | None, ...], x: Tensor, steps: tuple[Step, ...], positions: bool, keep: bool
    ) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
        """Fold the mapped dimension into the batch: samples do not influence each other."""
        assert in_dims[0] is not None
        x = x.movedim(in_dims[0], 0)
        outputs = _CovarianceRoot.apply(x.flatten(0, 1), steps, positions, keep)
        return tuple(o.unflatten(0, x.shape[:2]) for o in outputs), (0,) * len(outputs)
