"""The methods ``binary`` and ``ternary``: low-bit weights with straight-through gradients, packed on disk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from convsmith.compression.cost import cost
from convsmith.compression.methods.low_bit import lowbit
from convsmith.compression.methods.method import METHODS, Applied, Method
from convsmith.compression.planning.budget import Option, assemble
from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.replacement import replace
from convsmith.inspection.layers import LayerInventory

_NOTE = (
    "weights are {} on disk and in value, but computed in floating point: the file shrinks, MACs and latency do not; "
    "training quantises them anew in every forward pass"
)


@dataclass(frozen=True)
class LowBitMethod(Method):
    """What binary, ternary and weight-only int8 share: which layers, and their replacement.

    Args:
        ends: also quantise the first and the last layer, which are kept otherwise (they lose the most accuracy).
        skip: names of layers to leave alone.
    """

    ends: bool = False
    skip: tuple[str, ...] = ()

    scheme: ClassVar[str] = ""

    def plan(
        self,
        model: nn.Module,
        seen: LayerInventory,
        budget: Budget | None,
        progress: Callable[[int, int, str], None] | None = None,
        memory: dict[Any, Any] | None = None,
    ) -> Plan:
        """Choose the layers; precision takes no budget."""
        return plan_lowbit(self.scheme, model, seen, ends=self.ends, skip=self.skip)

    def apply(self, model: nn.Module, seen: LayerInventory, plan: Plan) -> Applied:
        """Replace the layers."""
        return apply_lowbit(model, seen, plan)

    @classmethod
    def restore_structure(cls, model: nn.Module, layers: dict[str, Any]) -> nn.Module:
        """Put empty low-bit layers in place of the layers named."""
        return rebuild_lowbit(model, layers)


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


def plan_lowbit(scheme: str, model: nn.Module, seen: LayerInventory, *, ends: bool, skip: tuple[str, ...]) -> Plan:
    """Plan ``scheme`` for every usable layer; without ``ends`` the first and last layer that ran are left alone."""
    skipped = {**seen.skipped(), **dict.fromkeys(skip, "skipped on request")}
    ran = [layer for layer in seen.layers if layer.calls and layer.kind != "other"]
    if not ends and ran:
        kept = {ran[0].name: "first layer, kept", ran[-1].name: "last layer, kept"}
        skipped = {**kept, **skipped}
    layers = [x for x in seen.usable("conv", "linear", "transposed") if x.name not in skipped]
    whole = cost(model, tuple(seen.example.shape[1:]))
    picked = [(layer, Option({"scheme": scheme}, layer.macs, layer.params, 0.0), None) for layer in layers]
    return assemble(scheme, whole.macs, whole.params, picked, skipped=skipped)


def apply_lowbit(model: nn.Module, seen: LayerInventory, plan: Plan) -> Applied:
    """Replace the planned layers by low-bit ones with the same latent weights."""
    layers = plan.settings()
    for name, setting in layers.items():
        replace(model, name, lowbit(seen.by_name()[name].module, setting["scheme"]))
    schemes = sorted({setting["scheme"] for setting in layers.values()})
    return Applied(model, layers, (_NOTE.format("/".join(schemes)),))


def rebuild_lowbit(model: nn.Module, layers: dict[str, Any]) -> nn.Module:
    """Put empty low-bit layers in place of the layers named, in place."""
    for name, setting in layers.items():
        replace(model, name, lowbit(model.get_submodule(name), setting["scheme"], keep=False))
    return model
