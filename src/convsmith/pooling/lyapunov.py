"""The Lyapunov equation B X + X B = G, whose solution is the derivative of the square root B = A^(1/2).

Papers: Lin and Maji, "Improved Bilinear Pooling with CNNs" (BMVC 2017), equation (9); Song et al. (ICLR 2022), section
3.3, for the iterative solver.
Differs from the papers: every sample is scaled by its own norm (the published code takes one norm for the whole batch,
so that a small sample is solved less accurately beside large ones), and the exact solver leaves the null space out.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def lyapunov_iterative(b: Tensor, g: Tensor, iterations: int = 8) -> Tensor:
    """Solve B X + X B = G for positive semi-definite B by the sign iteration, [B, d, d], 6 products a step.

    ``b <- b (3 I - b^2) / 2``, ``c <- (c (3 I - b^2) - b^2 c + b c b) / 2`` from b = B/|B|_F, c = G/|B|_F; X = c / 2.
    Nothing but b and c is kept. A zero matrix gives zero.
    """
    size = b.square().sum((-2, -1), keepdim=True)
    alive = size > 0
    scale = torch.where(alive, torch.where(alive, size, 1.0).rsqrt(), 0.0)
    b, c = b * scale, g * scale
    eye = torch.eye(b.shape[-1], dtype=b.dtype, device=b.device)
    for _ in range(iterations):
        b2 = b @ b
        rest = torch.sub(3.0 * eye, b2)
        c = 0.5 * (c @ rest - b2 @ c + b @ c @ b)
        b = 0.5 * (b @ rest)
    return 0.5 * c


class LyapunovExact(torch.autograd.Function):
    """(B, G, eigenvalues of B, its eigenvectors) -> X with B X + X B = G, the block over the null space set to zero.

    Its own gradient is again a Lyapunov equation, so every order of derivative exists and none divides by the gap of
    two eigenvalues: for a cotangent H of X, with S solving B S + S B = H, G gets S and B gets -(S X + X S).
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        b: Tensor,  # noqa: ARG004
        g: Tensor,
        values: Tensor,
        vectors: Tensor,
    ) -> Tensor:
        total = values[..., :, None] + values[..., None, :]
        factor = torch.where(total > 0, 1.0 / torch.where(total > 0, total, 1.0), 0.0)
        return vectors @ (factor * (vectors.mT @ g @ vectors)) @ vectors.mT

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        b, _, values, vectors = inputs
        ctx.save_for_backward(b, values, vectors, output)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor, Tensor, None, None]:
        b, values, vectors, x = ctx.saved_tensors
        s = LyapunovExact.apply(b, h, values, vectors)
        # B and X are symmetric wherever this is used; the transposes keep the formula right for any G
        return -(s @ x.mT + x.mT @ s), s, None, None
