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
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from convsmith.pooling.inputs import has_values, is_plain, is_traced


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


class Link(NamedTuple):
    """What one step leaves to the backward pass: R, K = R^2 + k (degree 4), u, the product before it, W = u^2."""

    r: Tensor
    inner: Tensor | None
    u: Tensor
    before: Tensor | None
    w: Tensor | None


def _on_chain(steps: tuple[Step, ...], root: bool) -> list[tuple[bool, ...]]:
    """Tell per step which fields of its `Link` the chain of `run` holds; the others follow from these or are None."""
    last = len(steps) - 1
    return [
        (True, step.squarings == 2, step.squarings > 0, k > 1 or (k == 1 and root), k < last and (k > 0 or not root))
        for k, step in enumerate(steps)
    ]


def kept_matrices(steps: tuple[Step, ...], root: bool) -> int:
    """Count the matrices that `run` puts on the chain."""
    return sum(map(sum, _on_chain(steps, root)))


def links(chain: Sequence[Tensor], steps: tuple[Step, ...], root: bool) -> list[Link]:
    """Return the chain of `run` step by step."""
    stack, found = iter(chain), list[Link]()
    for k, (step, there) in enumerate(zip(steps, _on_chain(steps, root), strict=True)):
        r, inner, u, before, w = (next(stack) if held else None for held in there)
        assert r is not None
        if k == 1 and not root:
            before = found[0].u
        found.append(Link(r, inner, _linear(step, r) if u is None else u, before, w))
    return found


def run(a: Tensor, steps: tuple[Step, ...], root: bool, symmetric: bool = False) -> tuple[Tensor, list[Tensor]]:
    """Return the product of the steps and the chain that `pull_back` reads.

    Shapes: ``a`` [B, n, n], the eigenvalues in (0, 1] for the schemes of this package; the result is [B, n, n],
    ``A prod u_k`` if ``root`` else ``prod u_k``. The chain holds the fields of a `Link` per step, less what follows
    from others. Plain differentiable tensor operations only. ``symmetric=True`` promises a symmetric A and may save
    work.
    """
    multiply = symmetric_product if symmetric else _product
    eye = eye_like(a)
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


def eye_like(a: Tensor) -> Tensor:
    """Return the identity [n, n] for matrices [..., n] of this type and place."""
    return torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)


def _linear(step: Step, r: Tensor) -> Tensor:
    a, b = step.completed()
    return torch.add(b * r, eye_like(r), alpha=a)


def _evaluate(step: Step, r: Tensor, eye: Tensor, chain: list[Tensor], multiply: Callable[..., Tensor]) -> Tensor:
    if step.squarings == 0:
        return _linear(step, r)
    c = step.completed()
    if step.squarings == 1:
        u = multiply(r, r, eye, beta=c[0], alpha=c[1])
    else:
        inner = multiply(r, r, eye, beta=c[3])
        chain.append(inner)
        u = torch.add(multiply(inner, inner, r, beta=c[1], alpha=c[2]), eye, alpha=c[0])
    chain.append(u)
    return u


def recomputed(function: Callable[..., Tensor], a: Tensor, *settings: Any) -> Tensor:
    """Return ``function(a, *settings)``, of which the backward pass keeps ``a`` alone: it runs the function again."""
    if is_traced(a) or not (has_values(a) and a.requires_grad and torch.is_grad_enabled()):
        return function(a, *settings)
    out: Tensor = checkpoint(function, a, *settings, use_reentrant=False, preserve_rng_state=False)
    return out


def pull_back(chain: Sequence[Tensor], steps: tuple[Step, ...], root: bool, g: Tensor) -> Tensor:
    """Return the symmetric gradient with respect to A of ``<g, run(A)>`` for symmetric A and g, [B, n, n].

    For steps of degree 1 and 4. Everything is symmetric: A, the iterates (they commute), the cotangent, and every
    intermediate gradient. So a squaring ``K = R^2`` passes ``R G + (R G)^T`` back, one matrix product, and a product
    ``P = R W`` passes the symmetric parts of ``G W`` and ``R G``. Constant factors travel beside the matrices as
    numbers and end in a product's ``alpha``: a pass over memory saved each time.
    """
    # gradients of the product so far, with its factor, and of P after this step
    z_bar, z_factor = g, 1.0
    p_bar: Tensor | None = None
    for k, (r, inner, u, before, w) in reversed(list(enumerate(links(chain, steps, root)))):
        c, m = steps[k].completed(), steps[k].centre
        passed: Tensor | None = None  # a gradient of R before its symmetric part is taken, times two
        if k == 0 and root:
            a = torch.add(r, eye_like(r), alpha=m) if m else r
            u_bar, y_bar = _first_product(a, u, z_bar, z_factor, p_bar)
            passed = torch.bmm(y_bar, u)
        else:
            half = None if before is None else torch.bmm(before, z_bar)
            if p_bar is not None:
                assert w is not None
                w_bar = _mirrored(torch.baddbmm(p_bar, r, p_bar, beta=m) if m else torch.bmm(r, p_bar))
                half = torch.baddbmm(z_bar if half is None else half, u, w_bar, beta=z_factor / 2, alpha=0.5)
                passed = torch.bmm(p_bar, w)
            elif half is not None:
                half = half * (z_factor / 2)
            u_bar = z_bar * z_factor if half is None else _mirrored(half)
            if before is not None:
                z_bar, z_factor = _mirrored(torch.bmm(z_bar, u)), z_factor / 2

        if inner is None:
            p_bar = c[1] * u_bar if passed is None else _mirrored(torch.add(c[1] * u_bar, passed) * 0.5)
        else:
            inner_bar = _mirrored(torch.bmm(inner, u_bar))
            total = torch.baddbmm(u_bar, r, inner_bar, beta=c[1] / 2, alpha=c[2])
            p_bar = _mirrored(total if passed is None else torch.add(total, passed, alpha=0.5))
    assert p_bar is not None
    return p_bar


def _first_product(a: Tensor, u: Tensor, z_bar: Tensor, z_factor: float, p_bar: Tensor | None) -> tuple[Tensor, Tensor]:
    """Gradients of u and of Y = A u, where P = Y u goes on."""
    if p_bar is None:
        y_bar = z_bar * z_factor
        return _mirrored(torch.bmm(a, y_bar)) * 0.5, y_bar
    y_bar = _mirrored(torch.baddbmm(z_bar, p_bar, u, beta=z_factor / 2, alpha=0.5))
    y = symmetric_product(a, u)
    half = torch.baddbmm(torch.bmm(y, p_bar), a, y_bar, beta=0.5, alpha=0.5)
    return _mirrored(half), y_bar


def _mirrored(x: Tensor) -> Tensor:
    return x + x.mT


def product_of(chain: Sequence[Tensor], steps: tuple[Step, ...], root: bool) -> Tensor:
    """Return the result of `run` from its chain with at most one matrix product."""
    r, _, u, before, _ = links(chain, steps, root)[-1]
    if before is not None:
        return symmetric_product(before, u)
    return symmetric_product(torch.add(r, eye_like(r), alpha=steps[-1].centre), u) if root else u
