"""The backward pass of `convsmith.pooling.product_form.run` for symmetric matrices.

Everything here is symmetric: A, the iterates (they commute), the cotangent, and therefore every intermediate
gradient. So a squaring ``K = R^2`` passes ``R G + (R G)^T`` back, one matrix product, and a product ``P = R W``
passes the symmetric parts of ``G W`` and ``R G``. Constant factors travel beside the matrices as numbers and end in a
product's ``alpha``: a pass over memory saved each time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from convsmith.pooling.product_form import Step, symmetric_product


def pull_back(chain: list[Tensor], steps: tuple[Step, ...], root: bool, g: Tensor) -> Tensor:
    """Return the symmetric gradient with respect to A of ``<g, run(A)>`` for symmetric A and g, [B, n, n]."""
    stack = list(chain)
    eye = torch.eye(g.shape[-1], dtype=g.dtype, device=g.device)
    # gradients of the product so far and of P after this step, each with its factor
    z_bar, z_factor = g, 1.0
    p_bar: Tensor | None = None
    p_factor = 1.0
    for k in reversed(range(len(steps))):
        step, m = steps[k], steps[k].centre
        first_root = k == 0 and root
        w = stack.pop() if p_bar is not None and not first_root else None
        before = stack.pop() if k > 1 or (k == 1 and root) else None
        u = stack.pop() if step.squarings else None
        inner = stack.pop() if step.squarings == 2 else None
        r = stack.pop()
        c = step.completed()
        if u is None:
            u = torch.add(c[1] * r, eye, alpha=c[0])
        if k == 1 and not root:
            before = first_factor(stack, steps[0], eye)

        passed = None  # a gradient of R before its symmetric part is taken, times two
        if first_root:
            a = torch.add(r, eye, alpha=m) if m else r
            u_bar, y_bar = _first_product(a, u, z_bar, z_factor, p_bar, p_factor)
            passed = torch.bmm(y_bar, u)
        else:
            half: Tensor | None = None
            if p_bar is not None:
                w_bar = _mirrored(torch.baddbmm(p_bar, r, p_bar, beta=m) if m else torch.bmm(r, p_bar))
                if before is None:
                    half = torch.baddbmm(z_bar, u, w_bar, beta=z_factor / 2, alpha=p_factor / 2)
                else:
                    half = torch.baddbmm(torch.bmm(before, z_bar), u, w_bar, beta=z_factor / 2, alpha=p_factor / 2)
            elif before is not None:
                half = torch.bmm(before, z_bar) * (z_factor / 2)
            u_bar = z_bar * z_factor if half is None else _mirrored(half)
            if before is not None:
                z_bar, z_factor = _mirrored(torch.bmm(z_bar, u)), z_factor / 2
            if p_bar is not None and w is not None:
                passed = torch.bmm(p_bar, w) if p_factor == 1.0 else torch.bmm(p_bar * p_factor, w)

        if step.squarings == 0:
            p_bar = c[1] * u_bar if passed is None else _mirrored(torch.add(c[1] * u_bar, passed) * 0.5)
        elif inner is None:
            total = torch.bmm(r, u_bar) * c[1]
            p_bar = _mirrored(total if passed is None else torch.add(total, passed, alpha=0.5))
        else:
            inner_bar = _mirrored(torch.bmm(inner, u_bar))
            total = torch.baddbmm(u_bar, r, inner_bar, beta=c[1] / 2, alpha=c[2])
            p_bar = _mirrored(total if passed is None else torch.add(total, passed, alpha=0.5))
        p_factor = 1.0
    assert p_bar is not None
    return p_bar


def _first_product(
    a: Tensor, u: Tensor, z_bar: Tensor, z_factor: float, p_bar: Tensor | None, p_factor: float
) -> tuple[Tensor, Tensor]:
    """Gradients of u and of Y = A u, where P = Y u goes on."""
    if p_bar is None:
        y_bar = z_bar * z_factor
        return _mirrored(torch.bmm(a, y_bar)) * 0.5, y_bar
    y_bar = _mirrored(torch.baddbmm(z_bar, p_bar, u, beta=z_factor / 2, alpha=p_factor / 2))
    y = symmetric_product(a, u)
    half = torch.baddbmm(torch.bmm(y, p_bar), a, y_bar, beta=p_factor / 2, alpha=0.5)
    return _mirrored(half), y_bar


def _mirrored(x: Tensor) -> Tensor:
    return x + x.mT


def first_factor(stack: list[Tensor], step: Step, eye: Tensor) -> Tensor:
    """Return the first step's u, from the end of a chain that stops after it."""
    if step.squarings:
        return stack[-2]
    c = step.completed()
    return torch.add(c[1] * stack[-2], eye, alpha=c[0])


def product_of(chain: list[Tensor], steps: tuple[Step, ...], root: bool) -> Tensor:
    """Return the result of `run` from its chain with at most one matrix product."""
    stack, step, k = list(chain), steps[-1], len(steps) - 1
    eye = torch.eye(chain[0].shape[-1], dtype=chain[0].dtype, device=chain[0].device)
    before = stack.pop() if k > 1 or (k == 1 and root) else None
    u = stack.pop() if step.squarings else None
    if step.squarings == 2:
        stack.pop()
    r = stack.pop()
    if u is None:
        c = step.completed()
        u = torch.add(c[1] * r, eye, alpha=c[0])
    if k == 0:
        return symmetric_product(torch.add(r, eye, alpha=step.centre), u) if root else u
    if before is None:
        before = first_factor(stack, steps[0], eye)
    return symmetric_product(before, u)
