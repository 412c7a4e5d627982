"""The root of a covariance by minimax steps, straight from the features: the polar factor's iteration, on either side.

With X the centred features of Frobenius norm one, the minimax quintics are odd polynomials of X itself::

    X_{k+1} = X_k u_k(X_k^T X_k) = u_k(X_k X_k^T) X_k,      X_N = h(X) -> polar factor,      (X X^T)^(1/2) ~ X h(X)^T

On the singular values h is the composition of the odd quintics ``x u_k(x^2)``. The products with ``X_k^T X_k`` are
M x M ("positions"), those with ``X_k X_k^T`` d x d ("channels"): the same iterates.

The product form of `convsmith.pooling.product_form` forms X X^T first, and its rounding is multiplied by
``h'(0)^2 ~ 1e7`` in the null space; here by ``h'(0)``, which is what the function itself does to a change of X.
Measured in float64 against 60 digits, seven steps: output 1e-15 instead of 1e-13, gradient 1e-13 instead of 1e-8.

h is the gradient of a function of X (the sum of H(sigma) over the singular values, H' = h), so its derivative Dh is
self-adjoint, and for symmetric G the gradient of ``<G, X h(X)^T>`` is ``G h(X) + Dh(X)[G X]``: the iteration once more
in the direction G X. Nothing but X is stored.

Paper: Amsel, Persson, Musco, Gower (2025), algorithm 1, for the iteration.
Differs from the paper: the root instead of the polar factor, the d x d or M x M form by cost, the gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from convsmith.pooling.inputs import is_traced
from convsmith.pooling.product_form import Step, eye_like, symmetric_product


def minimax_root(x: Tensor, steps: tuple[Step, ...], positions: bool) -> Tensor:
    """Return the symmetric ``X h(X)^T`` for features [B, d, M] of Frobenius norm at most one -> [B, d, d].

    ``steps`` are quadratics u_k; ``positions`` picks M x M products. Differentiable to any order.
    """
    if is_traced(x):
        return _symmetric(x @ _run(x, steps, positions)[0].mT)
    return _MinimaxRoot.apply(x, steps, positions)


def _symmetric(a: Tensor) -> Tensor:
    return (a + a.mT) * 0.5


def _run(x: Tensor, steps: tuple[Step, ...], positions: bool, dx: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """Return h(X) and, for a direction dX, Dh(X)[dX]."""
    for step in steps:
        y, half = x.mT if positions else x, None
        if dx is not None:
            half = x.mT @ dx if positions else dx @ x.mT
        p = symmetric_product(y, y.mT)
        eye, (a, e) = eye_like(p), step.completed()
        r = torch.sub(p, eye, alpha=step.centre)
        u = symmetric_product(r, r, eye, beta=a, alpha=e)
        if dx is not None and half is not None:
            du = torch.bmm(r, half + half.mT) * e
            du = du + du.mT
            dx = torch.baddbmm(torch.bmm(dx, u), x, du) if positions else torch.baddbmm(torch.bmm(u, dx), du, x)
        x = torch.bmm(x, u) if positions else torch.bmm(u, x)
    return x, dx


class _MinimaxRoot(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, steps: tuple[Step, ...], positions: bool) -> Tensor:
        return _symmetric(torch.bmm(x, _run(x, steps, positions)[0].mT))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], _output: Tensor) -> None:
        x, ctx.steps, ctx.positions = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        with torch.autocast(x.device.type, enabled=False):
            g = _symmetric(g)
            polar, derivative = _run(x, ctx.steps, ctx.positions, torch.bmm(g, x))
            assert derivative is not None
            return torch.baddbmm(derivative, g, polar), None, None
