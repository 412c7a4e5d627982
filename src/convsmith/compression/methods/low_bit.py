"""The methods ``binary`` and ``ternary``: layers that train on latent float weights and compute with quantised ones.

``binary``   w = a * sign(v), a = mean |v| per output channel (XNOR-Net's binary-weight network, section 3.1: the best
             scale for given signs). Gradient: straight through sign where |v| <= 1, and through the scale.
``ternary``  w = a * t, t in {-1, 0, 1}, t = 0 where |v| <= 0.7 mean |v|, a = mean of the other |v| (Ternary Weight
             Networks, eq. 5-6). Gradient: straight through.
``int8``     w = s * round(v / s), s = max |v| / 127 per output channel when the layer is made, then fixed.

Quantising twice gives the same numbers bit for bit (scales are accumulated in float64, where n equal float32 numbers
have an exact mean), so a layer loaded from packed codes computes exactly what the saved one computed.

Differs from the papers: activations stay in floating point; transposed convolutions have one scale for the layer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convsmith.arguments import one_of
from convsmith.compression.methods.method import METHODS, Applied, Method
from convsmith.compression.planning.budget import Option, assemble
from convsmith.compression.planning.moments import padding_sides
from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.replacement import fresh_like, replace
from convsmith.compression.planning.subject import Subject
from convsmith.inspection.layers import Weighted

SCHEMES = ("binary", "ternary", "int8")
#: the threshold of a ternary weight, in units of the channel's mean magnitude (TWN, eq. 6)
TERNARY_THRESHOLD = 0.7
_NOTE = (
    "weights are {} on disk and in value, but computed in floating point: the file shrinks, MACs and latency do not; "
    "training quantises them anew in every forward pass"
)


def _sign(v: Tensor) -> Tensor:
    """Return the sign, 1 at 0; the gradient passes where the input is at most 1 in magnitude."""
    passing = v.clamp(-1, 1)
    return torch.where(v >= 0, 1.0, -1.0).to(v.dtype) + (passing - passing.detach())


def scaled_dims(weight: Tensor, per_channel: bool) -> tuple[int, ...]:
    """Return the axes that share a scale: all but that of the output channels, or all."""
    return tuple(range(1 if per_channel else 0, weight.dim()))


def binary_weight(v: Tensor, *, per_channel: bool = True) -> Tensor:
    """Return a * sign(v) with a = mean |v| over each output channel (first axis) or over everything."""
    scale = v.abs().mean(scaled_dims(v, per_channel), keepdim=True, dtype=torch.float64).to(v.dtype)
    return scale * _sign(v)


def ternary_weight(v: Tensor, *, per_channel: bool = True) -> Tensor:
    """Return a * t with t in {-1, 0, 1}; see the module's formula."""
    dims = scaled_dims(v, per_channel)
    with torch.no_grad():
        size = v.abs().double()
        used = size > TERNARY_THRESHOLD * size.mean(dims, keepdim=True)
        scale = ((size * used).sum(dims, keepdim=True) / used.sum(dims, keepdim=True).clamp_min(1)).to(v.dtype)
        hard = scale * torch.sign(v) * used
    return v + (hard - v).detach() if v.requires_grad and torch.is_grad_enabled() else hard


def int8_scale(v: Tensor, *, per_channel: bool = True) -> Tensor:
    """Return max |v| / 127 for each output channel, shaped to broadcast with ``v``; 1 where a channel is all zero."""
    dims = scaled_dims(v, per_channel)
    scale = v.detach().abs().amax(dims, keepdim=True) / 127
    return torch.where(scale > 0, scale, torch.ones_like(scale))


def int8_weight(v: Tensor, scale: Tensor) -> Tensor:
    """Return scale * round(v / scale), codes clamped to -127..127; the gradient passes straight through."""
    hard = (v.detach() / scale).round().clamp(-127, 127) * scale
    return v + (hard - v).detach() if v.requires_grad and torch.is_grad_enabled() else hard


class LowBit(nn.Module):
    """What the three layer classes share: ``scheme``, the latent ``weight`` and the quantised one."""

    scheme: str
    weight: Any
    bias: Any
    scale: Tensor | None
    per_channel: bool = True

    def quantised(self) -> Tensor:
        """Return the weight the layer computes with, differentiable with respect to the latent one.

        Without gradients in evaluation mode it is computed once per version of the latent weight and remembered.
        """
        if self.training or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._quantise()
        mark = (self.weight._version, self.weight.data_ptr())
        known = self.__dict__.get("_known")
        if known is not None and known[0] == mark and known[1].device == self.weight.device:
            return known[1]
        fresh = self._quantise()
        if type(fresh) is Tensor:  # neither fake nor traced
            self.__dict__["_known"] = (mark, fresh)
        return fresh

    def train(self, mode: bool = True) -> LowBit:
        """Set the mode and forget the remembered weight."""
        self.__dict__.pop("_known", None)
        return super().train(mode)

    def _quantise(self) -> Tensor:
        if self.scheme == "binary":
            return binary_weight(self.weight, per_channel=self.per_channel)
        if self.scheme == "ternary":
            return ternary_weight(self.weight, per_channel=self.per_channel)
        assert self.scale is not None
        return int8_weight(self.weight, self.scale)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, {self.scheme} weights"


class LowBitConv2d(LowBit, nn.Conv2d):
    """A convolution with quantised weights; see the module."""

    def forward(self, x: Tensor) -> Tensor:
        padding: Any = self.padding
        if self.padding_mode != "zeros" and padding != "valid":
            x = nn.functional.pad(x, padding_sides(self), mode=self.padding_mode)
            padding = 0
        return nn.functional.conv2d(x, self.quantised(), self.bias, self.stride, padding, self.dilation, self.groups)


class LowBitLinear(LowBit, nn.Linear):
    """A fully connected layer with quantised weights; see the module."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.quantised(), self.bias)


class LowBitConvTranspose2d(LowBit, nn.ConvTranspose2d):
    """A transposed convolution with quantised weights and one scale; see the module."""

    per_channel = False

    def forward(self, x: Tensor, output_size: list[int] | None = None) -> Tensor:
        padding: Any = self.padding
        extra: Any = self.output_padding
        if output_size is not None:
            sides = zip(
                output_size[-2:], x.shape[-2:], self.stride, padding, self.dilation, self.kernel_size, strict=True
            )
            extra = [size - ((n - 1) * s - 2 * p + d * (k - 1) + 1) for size, n, s, p, d, k in sides]
        return nn.functional.conv_transpose2d(
            x, self.quantised(), self.bias, self.stride, padding, extra, self.groups, self.dilation
        )


def lowbit(module: Weighted, scheme: str, *, keep: bool = True) -> nn.Module:
    """Return the quantised twin of a Conv2d, ConvTranspose2d or Linear; ``keep`` copies its weights."""
    one_of("scheme", scheme, SCHEMES)
    kinds = {nn.Conv2d: LowBitConv2d, nn.ConvTranspose2d: LowBitConvTranspose2d, nn.Linear: LowBitLinear}
    new: LowBit = fresh_like(module, next(own for plain, own in kinds.items() if isinstance(module, plain)))
    new.scheme = scheme
    if keep:
        new.load_state_dict(module.state_dict())
    new.register_buffer("scale", int8_scale(new.weight, per_channel=new.per_channel) if scheme == "int8" else None)
    return new


@dataclass(frozen=True)
class LowBitMethod(Method):
    """What binary, ternary and weight-only int8 share: which layers, and their replacement.

    Args:
        ends: also quantise the first and the last layer, which are kept otherwise (they lose the most accuracy).
    """

    ends: bool = False

    scheme: ClassVar[str] = ""

    def plan(self, subject: Subject, budget: Budget | None) -> Plan:
        """Choose every usable layer, without ``ends`` not the first and the last that ran; there is no budget."""
        seen, skipped = subject.seen, self.left_alone(subject)
        ran = [layer for layer in seen.layers if layer.calls and layer.kind != "other"]
        if not self.ends and ran:
            kept = {ran[0].name: "first layer, kept", ran[-1].name: "last layer, kept"}
            skipped = {**kept, **skipped}
        layers = [x for x in seen.usable("conv", "linear", "transposed") if x.name not in skipped]
        picked = [(x, Option({"scheme": self.scheme}, x.macs, x.params, 0.0), None) for x in layers]
        return assemble(self.scheme, subject, picked, skipped=skipped)

    def apply(self, subject: Subject, plan: Plan) -> Applied:
        """Replace the planned layers by low-bit ones with the same latent weights."""
        layers = plan.settings()
        for name, setting in layers.items():
            replace(subject.model, name, lowbit(subject.seen.by_name()[name].module, setting["scheme"]))
        schemes = sorted({setting["scheme"] for setting in layers.values()})
        return Applied(subject.model, layers, (_NOTE.format("/".join(schemes)),))

    @classmethod
    def empty(cls, layer: nn.Module, setting: dict[str, Any]) -> nn.Module:
        """Return the low-bit layer with fresh weights."""
        return lowbit(layer, setting["scheme"], keep=False)


@METHODS.register("binary")
@dataclass(frozen=True)
class Binary(LowBitMethod):
    """Weights of one bit and a scale per output channel (XNOR-Net's binary weights)."""

    scheme: ClassVar[str] = "binary"


@METHODS.register("ternary")
@dataclass(frozen=True)
class Ternary(LowBitMethod):
    """Weights -1, 0, 1 and a scale per output channel (Ternary Weight Networks)."""

    scheme: ClassVar[str] = "ternary"
