"""K binary domain discriminators as one batch of matrix products, never the outer product of features and classes.

Cao et al., Partial Transfer Learning with Selective Adversarial Networks, CVPR 2018 (one discriminator per source
class).

Layout: the first layer, whose input all discriminators share, is one product ``x @ W1^T``; its result [B, K, h] enters
the later layers, batched products, as [K, B, h] by strides alone. No weight or activation is ever permuted in memory.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from convsmith import arguments
from convsmith.adaptation.losses.operands import matrix, vector


def keep_mask(shape: Sequence[int], dropout: float, device: torch.device) -> Tensor:
    """Return a boolean mask that is False with probability ``dropout``, from 16 random bits an entry.

    Exact for multiples of 1/65536 (0.5 among them), rounded to the nearest one otherwise. Four entries share one 64-bit
    draw of torch's generator, which on a CPU is several times cheaper than one Bernoulli draw an entry.
    """
    count = math.prod(shape)
    words = torch.empty((count + 3) // 4, dtype=torch.int64, device=device).random_(-(2**63), None)
    threshold = round(dropout * 65536) - 32768
    return (words.view(torch.int16)[:count] >= threshold).view(*shape)


class _Bank(torch.autograd.Function):
    """All discriminators with a hand-written backward pass, for the CPU.

    Saves only the masked activations: an entry is positive exactly where its unit was active and kept, so one
    comparison gives the derivative of ReLU and dropout together, and the factor 1/(1-p) rides on the products' alpha.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        instance: Tensor | None,
        scale: Tensor | None,
        keep: float,
        masks: list[Tensor],
        *layers: Tensor,
    ) -> Tensor:
        weights, biases = layers[0::2], layers[1::2]
        classes = biases[0].shape[0]
        flat = torch.mm(x, weights[0].flatten(0, 1).T).view(len(x), classes, weights[0].shape[1])
        if instance is not None:
            flat *= instance[:, :, None]
        flat += biases[0]
        z = flat.transpose(0, 1)
        hidden = []
        for weight, bias, mask in zip(weights[1:], biases[1:], masks, strict=True):
            z.clamp_min_(0)
            if keep < 1:
                z *= mask
            hidden.append(z)
            z = torch.baddbmm(bias[:, None, :], z, weight.mT, alpha=1 / keep)
        ctx.save_for_backward(x, instance, scale, *weights, *hidden)
        ctx.keep = keep
        return z[:, :, 0].T

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, instance, scale, *rest = ctx.saved_tensors
        count = (len(rest) + 1) // 2
        weights, hidden = rest[:count], rest[count:]
        need, nothing, alpha = ctx.needs_input_grad, grad.new_empty(1, 1, 1), 1 / ctx.keep
        g = grad.T[:, :, None]
        grads: list[Tensor | None] = [None] * (2 * count)
        for layer in range(count - 1, 0, -1):
            below = hidden[layer - 1]
            if need[5 + 2 * layer]:
                grads[2 * layer] = torch.baddbmm(nothing, g.mT, below, beta=0, alpha=alpha)
            if need[6 + 2 * layer]:
                grads[2 * layer + 1] = g.sum(1)
            g = torch.baddbmm(nothing, g, weights[layer], beta=0, alpha=alpha)
            g = torch.ops.aten.threshold_backward(g, below, 0)
        if need[6]:
            grads[1] = g.sum(1)
        if instance is not None:
            g = g * instance.T[:, :, None]
        if need[5]:
            grads[0] = torch.bmm(g.mT, x.expand(len(g), *x.shape))
        grad_x = None
        if need[0]:
            if scale is not None:
                g = g * scale[:, None, None]
            first = weights[0].flatten(0, 1)
            grad_x = g.transpose(0, 1).reshape(len(x), len(first)) @ first
        return (grad_x, None, None, None, None, *grads)


class ClassDiscriminators(nn.Module):
    """K discriminators ``d - hidden... - 1`` with ReLU and dropout, evaluated as one batch.

    Shapes: ``forward`` takes features [B, d] and returns logits [B, K]; positive means "source".

    Args:
        features: d.
        classes: K.
        hidden: widths of the hidden layers; None or ``()`` makes K linear probes (the ImageNet form of the public
            code).
        dropout: share of hidden units switched off, drawn for every image and every discriminator separately.

    ``first.weight`` is stored as [K * h, d], the later weights as [K, out, in]. Initialised as in the reference: N(0,
    0.01) hidden, N(0, 0.3) last, bias 0; linear probes N(0, 0.01).
    """

    @arguments.checked
    def __init__(
        self, features: int, classes: int, hidden: Sequence[int] | None = (1024, 1024), dropout: float = 0.5
    ) -> None:
        super().__init__()
        widths = tuple(arguments.integer("hidden", h, least=1) for h in (hidden or ()))
        arguments.integer("features", features, least=1)
        arguments.integer("classes", classes, least=1)
        arguments.number("dropout", dropout, least=0, below=1)
        self.features, self.classes, self.hidden, self.dropout = features, classes, widths, dropout
        self.first = nn.Linear(features, classes * (widths[0] if widths else 1))
        layers = list(pairwise([*widths, 1]))
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(classes, out, size)) for size, out in layers])
        self.biases = nn.ParameterList([nn.Parameter(torch.zeros(classes, out)) for _, out in layers])
        for weight in [self.first.weight, *self.weights]:
            nn.init.normal_(weight, std=0.01)
        if widths:
            nn.init.normal_(self.weights[-1], std=0.3)
        nn.init.zeros_(self.first.bias)

    def forward(self, x: Tensor, *, instance: Tensor | None = None, gradient_scale: Tensor | None = None) -> Tensor:
        """Return logits [B, K] for ``x`` [B, d].

        Args:
            x: features, 0 images or more.
            instance: constants [B, K]; discriminator k then sees ``instance[i, k] * x_i`` (the public PyTorch form), by
                scaling its first product, not by building the [B, d, K] features.
            gradient_scale: constants [K]; the gradient that discriminator k sends to ``x`` is multiplied by the k-th (a
                reversal is a negative one), its own parameters learn unscaled.
        """
        matrix("x", x, columns=self.features)
        if instance is not None:
            matrix("instance", instance, rows=len(x), columns=self.classes)
        if gradient_scale is not None:
            vector("gradient_scale", gradient_scale, length=self.classes)
        keep = 1 - self.dropout if self.training else 1.0
        masks = [x.new_empty(0)] * len(self.hidden)
        if keep < 1 and self.hidden:
            # the first mask is laid out as the activations it meets, [B, K, h] in memory
            first = keep_mask((len(x), self.classes, self.hidden[0]), self.dropout, x.device).transpose(0, 1)
            masks = [first, *(keep_mask((self.classes, len(x), h), self.dropout, x.device) for h in self.hidden[1:])]
        fused = x.device.type == "cpu" and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
        if fused and x.dtype == self.first.weight.dtype and not torch.compiler.is_compiling():
            layers = [self.first.weight.view(self.classes, -1, self.features), self.first.bias.view(self.classes, -1)]
            for weight, bias in zip(self.weights, self.biases, strict=True):
                layers += [weight, bias]
            logits: Tensor = _Bank.apply(x, instance, gradient_scale, keep, masks, *layers)
            return logits
        return self._plain(x, instance, gradient_scale, keep, masks)

    def _plain(
        self, x: Tensor, instance: Tensor | None, scale: Tensor | None, keep: float, masks: list[Tensor]
    ) -> Tensor:
        """Compute the same from plain operators: for the GPU, autocast, higher derivatives and compilation."""
        if scale is None:
            z = F.linear(x, self.first.weight)
        else:
            # value and parameter gradient from the detached input; the input's gradient alone from a scaled copy
            z = F.linear(x.detach(), self.first.weight)
            through = F.linear(x, self.first.weight.detach()).unflatten(1, (self.classes, -1)) * scale[:, None]
            z = z + (through - through.detach()).flatten(1)
        z = z.unflatten(1, (self.classes, -1))
        if instance is not None:
            z = z * instance[:, :, None]
        z = (z + self.first.bias.view(self.classes, -1)).transpose(0, 1)
        for weight, bias, mask in zip(self.weights, self.biases, masks, strict=True):
            z = torch.relu(z)
            if keep < 1:
                z = z * mask * (1 / keep)
            z = torch.baddbmm(bias[:, None, :], z, weight.mT)
        return z[:, :, 0].T

    def one(self, k: int) -> nn.Sequential:
        """Return discriminator ``k`` as an ordinary ``nn.Sequential`` with copied weights (the K-loop's member)."""
        h = self.hidden[0] if self.hidden else 1
        weights = [self.first.weight[k * h : (k + 1) * h], *[w[k] for w in self.weights]]
        biases = [self.first.bias[k * h : (k + 1) * h], *[b[k] for b in self.biases]]
        layers: list[nn.Module] = []
        for i, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
            if i:
                layers += [nn.ReLU(), nn.Dropout(self.dropout)]
            linear = nn.Linear(weight.shape[1], weight.shape[0]).to(weight)
            linear.weight.data.copy_(weight.detach())
            linear.bias.data.copy_(bias.detach())
            layers.append(linear)
        return nn.Sequential(*layers).train(self.training)

    def extra_repr(self) -> str:
        """Show the shape of the bank."""
        return f"features={self.features}, classes={self.classes}, hidden={self.hidden}, dropout={self.dropout}"
