"""Taylor and Pade approximants of the square root around the identity.

With ``A = I - Z`` and eigenvalues of A in [0, 1]: ``sqrt(1 - z) = 1 - sum_k |binom(1/2, k)| z^k``. Unlike
Newton-Schulz, which maps 0 to 0 and shrinks small eigenvalues, both lift them to a floor: C(2K, K)/4^K = 0.176 for
the Taylor polynomial of degree 10, 1/(2 K + 1) = 1/11 for the Pade [5, 5] quotient. Their outputs are not
interchangeable.

Paper: Song, Sebe, Wang, "Fast Differentiable Matrix Square Root" (ICLR 2022), sections 3.1 and 3.2.
"""

from __future__ import annotations

import functools
from fractions import Fraction

import torch
from torch import Tensor

from convsmith.pooling.inputs import positive


@functools.lru_cache(maxsize=16)
def taylor_coefficients(degree: int) -> tuple[float, ...]:
    """Coefficients of sqrt(1 - z) up to z^degree, lowest first."""
    return tuple(float(c) for c in _series(degree))


def _series(degree: int) -> list[Fraction]:
    terms = [Fraction(1)]
    for k in range(1, degree + 1):
        terms.append(terms[-1] * (Fraction(k - 1) - Fraction(1, 2)) / k)
    return terms


@functools.lru_cache(maxsize=16)
def pade_coefficients(degree: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Numerator and denominator of the [degree, degree] Pade quotient of sqrt(1 - z), lowest first, from rationals."""
    positive("degree", degree)
    s = _series(2 * degree)
    rows = [[s[degree + i - j] for j in range(1, degree + 1)] + [-s[degree + i]] for i in range(1, degree + 1)]
    for i in range(degree):
        pivot = next(k for k in range(i, degree) if rows[k][i] != 0)
        rows[i], rows[pivot] = rows[pivot], rows[i]
        rows[i] = [x / rows[i][i] for x in rows[i]]
        for k in range(degree):
            if k != i:
                rows[k] = [x - rows[k][i] * y for x, y in zip(rows[k], rows[i], strict=True)]
    q = [Fraction(1)] + [row[degree] for row in rows]
    p = [sum((q[j] * s[i - j] for j in range(i + 1)), Fraction(0)) for i in range(degree + 1)]
    return tuple(map(float, p)), tuple(map(float, q))


def matrix_polynomial(z: Tensor, coefficients: tuple[float, ...]) -> Tensor:
    """Return sum_k coefficients[k] z^k by Horner's rule, [B, d, d]."""
    eye = torch.eye(z.shape[-1], dtype=z.dtype, device=z.device)
    out = torch.add(coefficients[-1] * z, eye, alpha=coefficients[-2])
    for c in reversed(coefficients[:-2]):
        out = torch.add(z @ out, eye, alpha=c)
    return out


def taylor_root(a: Tensor, degree: int = 10) -> Tensor:
    """Return the Taylor approximant of A^(1/2), eigenvalues of A in [0, 1], ``degree - 1`` products."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    return matrix_polynomial(eye - a, taylor_coefficients(positive("degree", degree)))


def pade_root(a: Tensor, degree: int = 5) -> Tensor:
    """Return the [degree, degree] Pade approximant of A^(1/2), eigenvalues of sym(A) in [0, 1], one solve."""
    eye = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    p, q = pade_coefficients(degree)
    z = eye - (a + a.mT) * 0.5
    # the denominator is positive on [0, 1], so its factor is Cholesky's
    factor = torch.linalg.cholesky(matrix_polynomial(z, q))
    return torch.cholesky_solve(matrix_polynomial(z, p), factor)
