"""Functions of symmetric positive semi-definite matrices through their eigenvalues, with a gradient that has no gaps.

For ``f(A) = U f(lambda) U^T`` the derivative in direction E is ``U [L o (U^T E U)] U^T`` with the divided differences
``L_ij = (f(l_i) - f(l_j)) / (l_i - l_j)``, ``L_ii = f'(l_i)`` (Daleckii and Krein). The published gradients of
MPN-COV and DeepO2P go through the eigenvectors and divide by l_i - l_j; here every divided difference has a closed
form without that difference, so repeated eigenvalues are exact. Over the null space a root is not differentiable;
that block is zero, which is what the chain rule through a covariance sees anyway (X^T times a null vector is zero).
The derivative of the square root B solves the Lyapunov equation B X + X B = G.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from convsmith.errors import InvalidArgument


class SpectralFunction(Protocol):
    """A scalar function f on [0, inf), finite at zero, and its divided differences.

    ``slope(x, y)`` is (f(x) - f(y)) / (x - y), f'(x) where both are equal; zero where both are null and f' is infinite.
    """

    def value(self, x: Tensor) -> Tensor: ...
    def slope(self, x: Tensor, y: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Power:
    """x^exponent on the positive eigenvalues; null ones stay zero (negative exponents: the pseudo-inverse's power)."""

    exponent: float

    def value(self, x: Tensor) -> Tensor:
        safe = torch.where(x > 0, x, 1.0)
        return torch.where(x > 0, safe**self.exponent, 0.0)

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        e = self.exponent
        x, y = torch.broadcast_tensors(x, y)
        both, one = (x > 0) & (y > 0), (x > 0) ^ (y > 0)
        larger = torch.where(x > y, x, y)
        base = torch.where(larger > 0, larger, 1.0) ** (e - 1.0)
        lower = torch.where(x > y, y, x)
        general = base * _ratio(torch.where(both, lower, larger), torch.where(larger > 0, larger, 1.0), e)
        null = 1.0 if e == 1.0 else 0.0
        return torch.where(both, general, torch.where(one, base, null))


SQUARE_ROOT = Power(0.5)


@dataclass(frozen=True)
class Logarithm:
    """log(x + ridge)."""

    ridge: float

    def value(self, x: Tensor) -> Tensor:
        return (x + self.ridge).log()

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        x, y = torch.broadcast_tensors(x + self.ridge, y + self.ridge)
        larger, lower = torch.where(x > y, x, y), torch.where(x > y, y, x)
        return _ratio(lower, larger, None) / larger


@dataclass(frozen=True)
class ShiftedRoot:
    """sqrt(shift^2 + x / scale) - shift, without cancellation; never negative for a shift of zero or more."""

    shift: float
    scale: float

    def _root(self, x: Tensor) -> Tensor:
        return (self.shift * self.shift + x / self.scale).sqrt()

    def value(self, x: Tensor) -> Tensor:
        root = self._root(x)
        if self.shift <= 0:
            return root - self.shift
        return (x / self.scale) / (root + self.shift)

    def slope(self, x: Tensor, y: Tensor) -> Tensor:
        total = self.scale * (self._root(x) + self._root(y))
        return torch.where(total > 0, 1.0 / torch.where(total > 0, total, 1.0), 0.0)


def _ratio(lower: Tensor, larger: Tensor, exponent: float | None) -> Tensor:
    """(t^e - 1) / (t - 1) for t = lower / larger in (0, 1], e where t is 1; without exponent log(t) / (t - 1)."""
    equal = lower == larger
    t = torch.where(larger > 0, lower / torch.where(larger > 0, larger, 1.0), 1.0)
    delta = torch.where(equal | (t <= 0), -1.0, torch.log(torch.where(t > 0, t, 1.0)))
    top = delta if exponent is None else torch.expm1(exponent * delta)
    # first and second Taylor coefficient at t = 1; the second keeps second derivatives right where t is 1
    first = 1.0 if exponent is None else exponent
    second = -0.5 if exponent is None else exponent * (exponent - 1.0) / 2.0
    near = first + second * (t - 1.0)
    return torch.where(equal, near, top / torch.expm1(delta))


def eigenvalues(a: Tensor) -> tuple[Tensor, Tensor]:
    """Return eigenvalues [B, d], ascending, those below d eps times the largest zero, and eigenvectors of sym(A)."""
    values, vectors = torch.linalg.eigh((a + a.mT) * 0.5)
    floor = a.shape[-1] * torch.finfo(a.dtype).eps * values[..., -1:].detach().abs()
    return torch.where(values > floor, values, 0.0), vectors


@torch.compiler.disable  # eigenvectors have no traced gradient: compiled code breaks here and runs this in eager mode
def spectral_map(a: Tensor, function: SpectralFunction) -> Tensor:
    """Return f(A) for symmetric positive semi-definite A, [B, d, d] -> [B, d, d].

    Only the symmetric part of A counts. Twice differentiable where eigenvalues are distinct; the square root, through
    Lyapunov equations, everywhere and to any order.
    """
    refuse_export()
    out: Tensor = _Spectral.apply(a, function)[0]
    return out


def refuse_export() -> None:
    """Raise `InvalidArgument` inside torch.export and the ONNX exporter."""
    if torch.compiler.is_exporting():
        hint = 'a pooling by Newton-Schulz: "isqrt-cov", or method="newton-schulz" where the pooling takes a method'
        raise InvalidArgument("a root by eigenvalues has no exported form", argument="torch.export or ONNX", hint=hint)


def spectral_pull_back(a: Tensor, g: Tensor, function: SpectralFunction) -> Tensor:
    """Return the symmetric gradient of ``<g, f(A)>`` with respect to A, itself differentiable as `spectral_map` is."""
    if function == SQUARE_ROOT:
        out, values, vectors = _Spectral.apply(a, function)
        return _derivative(out, values, vectors, g, function)
    return _daleckii_krein(*eigenvalues(a), g, function)


def _derivative(out: Tensor, values: Tensor, vectors: Tensor, g: Tensor, function: SpectralFunction) -> Tensor:
    """Return the derivative of ``out = f(A)`` in direction ``g``, which is its own adjoint."""
    if function != SQUARE_ROOT:
        return _daleckii_krein(values, vectors, g, function)
    solution: Tensor = LyapunovExact.apply(out, (g + g.mT) * 0.5, values.sqrt(), vectors)
    return solution


def _daleckii_krein(values: Tensor, vectors: Tensor, g: Tensor, function: SpectralFunction) -> Tensor:
    slopes = function.slope(values[..., :, None], values[..., None, :])
    inner = vectors.mT @ ((g + g.mT) * 0.5) @ vectors
    return vectors @ (slopes * inner) @ vectors.mT


class LyapunovExact(torch.autograd.Function):
    """(B, G, eigenvalues of B, its eigenvectors) -> X with B X + X B = G, the block over the null space set to zero.

    Its own gradient is again a Lyapunov equation, so every order of derivative exists and none divides by the gap of
    two eigenvalues: for a cotangent H of X, with S solving B S + S B = H, G gets S and B gets -(S X + X S).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(_b: Tensor, g: Tensor, values: Tensor, vectors: Tensor) -> Tensor:
        total = values[..., :, None] + values[..., None, :]
        factor = torch.where(total > 0, 1.0 / torch.where(total > 0, total, 1.0), 0.0)
        return vectors @ (factor * (vectors.mT @ g @ vectors)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        b, _, values, vectors = inputs
        ctx.save_for_backward(b, values, vectors, output)
        ctx.save_for_forward(b, values, vectors, output)

    @staticmethod
    def jvp(ctx: Any, db: Tensor | None, dg: Tensor | None, *_: Any) -> Tensor:
        b, values, vectors, x = ctx.saved_tensors
        right = torch.zeros_like(x) if dg is None else dg
        if db is not None:
            right = right - (db @ x + x @ db)
        solution: Tensor = LyapunovExact.apply(b, right, values, vectors)
        return solution

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None, None]:
        b, values, vectors, x = ctx.saved_tensors
        s = LyapunovExact.apply(b, h, values, vectors)
        # B and X are symmetric wherever this is used; the transposes keep the formula right for any G
        return -(s @ x.mT + x.mT @ s), s, None, None


class _Spectral(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, function: SpectralFunction) -> tuple[Tensor, Tensor, Tensor]:
        values, vectors = eigenvalues(a)
        return (vectors * function.value(values)[..., None, :]) @ vectors.mT, values, vectors

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        a, ctx.function = inputs
        ctx.mark_non_differentiable(output[1], output[2])
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(a, *output)
        ctx.save_for_forward(*output)

    @staticmethod
    def jvp(ctx: Any, da: Tensor, _: Any) -> tuple[Tensor, None, None]:
        out, values, vectors = ctx.saved_tensors
        return _derivative(out, values, vectors, da, ctx.function), None, None

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, None]:
        g = grads[0]
        if g is None:
            return None, None
        a, out, values, vectors = ctx.saved_tensors
        if torch.is_grad_enabled() and ctx.function != SQUARE_ROOT:
            values, vectors = eigenvalues(a)
        return _derivative(out, values, vectors, g, ctx.function), None
