"""Matrix roots as products of small polynomials: the iteration behind Newton-Schulz and its faster relatives.

Every scheme here is a list of polynomials u_k. Started at P_0 = A it multiplies ``P_{k+1} = P_k u_k(P_k)^2``, so P goes
to the identity on the range of A, and the product ``Z = prod_k u_k(P_k)`` goes to A^(-1/2), ``Y = A Z`` to A^(1/2). All
iterates are polynomials in A: they commute, and for symmetric A they are symmetric. That is used three times.

1. Two Newton-Schulz steps are one quartic u, and a quartic costs two squarings (complete the square twice), so N = 5
   takes 10 matrix products where the coupled recurrence takes 12.
2. The gradient of a squaring is ``G P + P G = R + R^T`` with R = P G for symmetric G: one product where a general
   product needs two.
3. The Frechet derivative of a polynomial at a symmetric point is self-adjoint, so the backward pass is a second pass
   over the same quantities; they may be kept or computed again.

Measured in float64 against the coupled recurrence: equal to 1e-14 (the test of this file).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from convsmith.pooling.inputs import has_values, is_plain, moves_forward


@dataclass(frozen=True)
class Step:
    """One factor u(p) = sum_i coefficients[i] p^i of degree 1, 2 or 4, lowest first."""

    coefficients: tuple[float, ...]

    def __call__(self, p: float) -> float:
        """Return the value at a number, for tests and scalar analysis."""
        return sum(c * p**i for i, c in enumerate(self.coefficients))

    @property
    def squarings(self) -> int:
        """Matrix products that one evaluation takes."""
        return {2: 0, 3: 1, 5: 2}[len(self.coefficients)]

    @property
    def centre(self) -> float:
        """The shift m in R = P - m I that removes the next-to-highest coefficient."""
        c = self.coefficients
        return 0.0 if len(c) == 2 else -c[-2] / ((len(c) - 1) * c[-1])

    def completed(self) -> tuple[float, ...]:
        """Coefficients after completing the square.

        Degree 1: ``(a, b)`` of a + b R. Degree 2: ``(a, e)`` of a + e R^2. Degree 4: ``(a, b, e, k)`` of
        a + b R + e (R^2 + k)^2.
        """
        c, m = self.coefficients, self.centre
        if len(c) == 2:
            return c
        if len(c) == 3:
            return (c[0] - c[2] * m * m, c[2])
        # Taylor coefficients around m; the third is zero by the choice of m
        t0 = self(m)
        t1 = c[1] + 2 * c[2] * m + 3 * c[3] * m**2 + 4 * c[4] * m**3
        t2 = c[2] + 3 * c[3] * m + 6 * c[4] * m**2
        k = t2 / (2 * c[4])
        return (t0 - c[4] * k * k, t1, c[4], k)


def kept_matrices(steps: tuple[Step, ...], root: bool) -> int:
    """Count the matrices that `run` puts on the chain."""
    count = 0
    for k, step in enumerate(steps):
        last = k == len(steps) - 1
        count += {2: 1, 3: 2, 5: 3}[len(step.coefficients)]
        count += (k > 1 or (k == 1 and root)) + (not last and not (k == 0 and root))
    return count


def run(a: Tensor, steps: tuple[Step, ...], root: bool, symmetric: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Return the product of the steps and the chain that `pull_back` reads.

    Shapes: ``a`` [B, n, n], the eigenvalues in (0, 1] for the schemes of this package; the result is [B, n, n],
    ``A prod u_k`` if ``root`` else ``prod u_k``. Per step the chain holds R, then K (degree 4), then u, W = u^2 where
    P goes on, and the product before the step where it is not in the chain already. Plain differentiable tensor
    operations only. ``symmetric=True`` promises a symmetric A and may save work.
    """
    multiply = symmetric_product if symmetric else _product
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    chain: list[Tensor] = []
    product, p = None, a
    for k, step in enumerate(steps):
        last = k == len(steps) - 1
        m = step.centre
        r = torch.sub(p, eye, alpha=m) if m else p
        chain.append(r)
        u = _evaluate(step, r, eye, chain, multiply)
        if k == 0 and root:
            product = multiply(a, u)
            if not last:
                p = multiply(product, u)
            continue
        if product is None:
            product = u
        else:
            if k > 1 or root:
                chain.append(product)
            product = multiply(product, u)
        if not last:
            w = multiply(u, u)
            chain.append(w)
            p = multiply(r, w, w, beta=m) if m else multiply(r, w)
    assert product is not None
    return product, chain


def symmetric_product(x: Tensor, y: Tensor, add: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    """Return ``beta add + alpha x y`` where x y is known to be symmetric (commuting symmetric factors, x = y^T).

    On a CPU, from 128 rows on and without autograd, only the upper block row and the lower right block are computed and
    the third block is mirrored: 3/4 of the operations (measured: 18 % less time at 196 and 256 rows, more below 128).
    """
    n = x.shape[-2]
    # fake tensors take the same way, so that what is counted without values is what runs
    plain = is_plain(x) or (type(x).__name__ == "FakeTensor" and not torch.compiler.is_compiling())
    if n < 128 or torch.is_grad_enabled() or x.device.type != "cpu" or not plain:
        return _product(x, y, add, beta, alpha)
    h = (n // 2 + 15) // 16 * 16
    out = torch.empty(x.shape[0], n, n, dtype=x.dtype)
    if add is None:
        top, corner = torch.bmm(x[:, :h], y), torch.bmm(x[:, h:], y[:, :, h:])
    else:
        top = torch.baddbmm(add[..., :h, :], x[:, :h], y, beta=beta, alpha=alpha)
        corner = torch.baddbmm(add[..., h:, h:], x[:, h:], y[:, :, h:], beta=beta, alpha=alpha)
    out[:, :h] = top
    out[:, h:, :h] = top[:, :, h:].mT
    out[:, h:, h:] = corner
    return out


def _product(x: Tensor, y: Tensor, add: Tensor | None = None, beta: float = 1.0, alpha: float = 1.0) -> Tensor:
    if add is None:
        return torch.bmm(x, y)
    return torch.baddbmm(add, x, y, beta=beta, alpha=alpha)


def _evaluate(step: Step, r: Tensor, eye: Tensor, chain: list[Tensor], multiply: Callable[..., Tensor]) -> Tensor:
    c = step.completed()
    if len(c) == 2 and step.squarings == 0:
        return torch.add(c[1] * r, eye, alpha=c[0])
    if len(c) == 2:
        u = multiply(r, r, eye, beta=c[0], alpha=c[1])
    else:
        inner = multiply(r, r, eye, beta=c[3])
        chain.append(inner)
        u = torch.add(multiply(inner, inner, r, beta=c[1], alpha=c[2]), eye, alpha=c[0])
    chain.append(u)
    return u


def recomputed(function: Callable[..., Tensor], a: Tensor, *settings: Any) -> Tensor:
    """Return ``function(a, *settings)``, of which the backward pass keeps ``a`` alone: it runs the function again."""
    traced = torch.compiler.is_compiling() or torch.jit.is_tracing() or moves_forward(a) or not has_values(a)
    if traced or not (a.requires_grad and torch.is_grad_enabled()):
        return function(a, *settings)
    out: Tensor = checkpoint(function, a, *settings, use_reentrant=False, preserve_rng_state=False)
    return out


def pull_back(chain: list[Tensor], steps: tuple[Step, ...], root: bool, g: Tensor) -> Tensor:
    """Return the symmetric gradient with respect to A of ``<g, run(A)>`` for symmetric A and g, [B, n, n].

    Everything is symmetric: A, the iterates (they commute), the cotangent, and every intermediate gradient. So a
    squaring ``K = R^2`` passes ``R G + (R G)^T`` back, one matrix product, and a product ``P = R W`` passes the
    symmetric parts of ``G W`` and ``R G``. Constant factors travel beside the matrices as numbers and end in a
    product's ``alpha``: a pass over memory saved each time.
    """
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
