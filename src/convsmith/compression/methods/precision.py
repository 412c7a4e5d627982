"""The methods ``binary`` and ``ternary``: low-bit weights with straight-through gradients, packed on disk."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from convsmith.compression.methods.low_bit import lowbit
from convsmith.compression.methods.method import METHODS, Applied, Method
from convsmith.compression.planning.budget import Option, assemble
from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.replacement import replace
from convsmith.compression.planning.subject import Subject

_NOTE = (
    "weights are {} on disk and in value, but computed in floating point: the file shrinks, MACs and latency do not; "
    "training quantises them anew in every forward pass"
)


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
