"""Gradient reversal and its published ramp, a function of the step.

Ganin et al., Domain-Adversarial Training of Neural Networks, JMLR 2016, section 4 and 5.2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from convsmith import arguments
from convsmith.arguments import wide


class _Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor) -> Tensor:
        ctx.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return -scale.to(grad.dtype) * grad, None


def reverse_gradient(x: Tensor, scale: float | Tensor) -> Tensor:
    """Return ``x`` unchanged; its gradient is multiplied by ``-scale`` on the way back.

    Shapes: ``x`` any; ``scale`` a number or a tensor that broadcasts against ``x`` (it receives no gradient).

    Examples:
        >>> x = torch.ones(2, requires_grad=True)
        >>> reverse_gradient(x, 0.5).sum().backward()
        >>> x.grad
        tensor([-0.5000, -0.5000])
    """
    arguments.tensor("x", x, what="floating-point numbers")
    if isinstance(scale, Tensor):
        factor = arguments.tensor("scale", scale, what="floating-point numbers").detach()
    else:
        factor = torch.tensor(arguments.number("scale", scale), dtype=wide(x).dtype, device=x.device)
    reversed_: Tensor = _Reverse.apply(x, factor)
    return reversed_


@arguments.checked
def ramp(step: int, length: int, *, upper: float = 1.0, alpha: float = 10.0, start: int = 0) -> float:
    """Return ``upper * (2 / (1 + exp(-alpha p)) - 1)``, ``p = min(1, (step - start) / length)``, 0 before start.

    It is 0 at ``start`` and ``0.99991 * upper`` (alpha 10) from ``start + length`` on. The step comes from the training
    loop; nothing is counted here, so a resumed run goes on where it stopped.

    Examples:
        >>> ramp(0, 100), round(ramp(100, 100), 4)
        (0.0, 0.9999)
    """
    arguments.number("step", step)
    arguments.integer("length", length, least=1)
    p = min(1.0, max(0, step - start) / length)
    return upper * (2.0 / (1.0 + math.exp(-alpha * p)) - 1.0)
