"""The method ``interleave``: dense convolutions become interleaved chains (IGCV1), projected from the trained kernel.

A convolution of C = M L input channels becomes L groups of M channels with the old kernel size, then M' groups of L
pointwise; nothing stands between the two, so the chain is one linear map and can be projected in closed form
(`operators.projection`): a rank-1 decomposition per block, exact where the kernel has that structure. The outputs of
one block had better be alike: they are computed in such an order (`methods.chain_layers`).
Which layers, and with how many members M, is chosen by the budget from the sensitivity of every candidate. Chains
come in few sizes; where they leave more than 1 % of the budget unused, a layer keeps some of its output channels dense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from convsmith.arguments import integer, number, one_of
from convsmith.compression.methods.chain_layers import AWARE_PATCH, projected, skeleton
from convsmith.compression.methods.method import METHODS, Applied, Method
from convsmith.compression.operators.backends import BACKENDS
from convsmith.compression.operators.projection import patch_second_moment, project
from convsmith.compression.planning.budget import SCAN_IMAGES, Option, assemble, plan_layers
from convsmith.compression.planning.moments import summed
from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.reconstruct import FEWEST
from convsmith.compression.planning.replacement import replace
from convsmith.compression.planning.subject import Subject
from convsmith.errors import InvalidArgument
from convsmith.inspection.layers import Layer

#: images whose patches it looks at, at most
MOMENT_IMAGES = 128
#: rounds of refinement of a trial
SCAN_SWEEPS = 8


@METHODS.register("interleave")
@dataclass(frozen=True)
class Interleave(Method):
    """Replace dense convolutions by interleaved group convolutions, projected from their kernels.

    Args:
        members: M, the channels of a primary partition, in every layer it divides; without it a budget (half of the
            MACs) chooses per layer.
        energy: instead, take per layer the cheapest chain that keeps this share of the kernel's energy, (0, 1].
        data_aware: project for the smallest error of the outputs on the example images, where the layer's input
            patch has at most 1152 numbers.
        reorder: compute a layer's outputs in an order in which those of one block are alike, and hand them on in the
            network's own, where that comes nearer.
        backend: of the new layers, see `convsmith.compression.operators.backends`.
    """

    members: int | None = None
    energy: float | None = None
    data_aware: bool = True
    reorder: bool = True
    backend: str = "auto"

    budgets: ClassVar[frozenset[str]] = frozenset({"macs", "params"})
    reconstructs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.members is not None:
            integer("members", self.members, least=1)
        if self.energy is not None:
            number("energy", self.energy, above=0, most=1)
        if self.members is not None and self.energy is not None:
            raise InvalidArgument("give members or energy, not both", given=f"{self.members}, {self.energy}")
        one_of("backend", self.backend, ("auto", *BACKENDS))

    def plan(self, subject: Subject, budget: Budget | None) -> Plan:
        """Choose the partitions per layer."""
        table, skipped = self.table(subject, self._options)
        if budget is None and (self.members is not None or self.energy is not None):
            picked = [(layer, min(options, key=lambda o: o.macs), None) for layer, options in table]
            return assemble("interleave", subject, picked, skipped=skipped)
        # a chain fits the images it is projected for: the scan judges it on others where there are enough
        enough = len(subject.seen.example) >= FEWEST
        names = [layer.name for layer, _ in table]
        moments = self._moments(subject, names, SCAN_IMAGES) if enough else {}

        def build(layer: Layer, option: Option) -> nn.Module:
            return projected(layer.module, self._whole(option.setting), moments.get(layer.name), SCAN_SWEEPS)

        wanted = budget or Budget("macs", 0.5)
        return plan_layers("interleave", subject, table, build, wanted, skipped=skipped, finer=_finer)

    def apply(self, subject: Subject, plan: Plan) -> Applied:
        """Replace the planned layers."""
        layers = {name: self._whole(setting) for name, setting in plan.settings().items()}
        for name, setting in layers.items():
            if reason := _unfit(subject.seen.by_name()[name]):
                raise InvalidArgument(f"{name} cannot be interleaved: {reason}", argument="plan", given=setting)
        moments = self._moments(subject, list(layers))
        for name, setting in layers.items():
            old = subject.model.get_submodule(name)
            made = projected(old, setting, moments.get(name))
            if made.in_order:
                made.order, setting["ordered"] = None, False
            replace(subject.model, name, made)
        return Applied(subject.model, layers)

    @classmethod
    def empty(cls, layer: nn.Module, setting: dict[str, Any]) -> nn.Module:
        """Return the chain with fresh weights."""
        return skeleton(layer, setting)

    def _whole(self, setting: dict[str, Any]) -> dict[str, Any]:
        return {**setting, "backend": self.backend, "ordered": self.reorder}

    def _options(self, layer: Layer) -> list[Option] | str:
        """Return the chains that are cheaper than the layer, dearest first, or why there is none."""
        if reason := _unfit(layer):
            return reason
        conv, found = layer.module, list[Option]()
        into, out, taps = conv.in_channels, conv.out_channels, conv.weight[0, 0].numel()
        positions = layer.macs // conv.weight.numel()
        for members in [m for m in range(1, into) if into % m == 0 and self.members in (None, m)]:
            primary = into // members
            for leaving in {(members, out // members), (out // primary, primary)}:
                weights = taps * into * leaving[0] + out * primary
                if leaving[0] * leaving[1] != out or weights * positions >= layer.macs:
                    continue
                loss = 1 - project(conv.weight, (members, primary), leaving).energy
                if self.energy is not None and 1 - loss < self.energy:
                    continue
                setting = {"partitions": [members, primary], "out_partitions": list(leaving)}
                params = weights + (0 if conv.bias is None else out)
                found.append(Option(setting, weights * positions, params, max(loss, 0.0)))
        if found:
            return sorted(found, key=lambda o: -o.macs)
        if self.energy is not None:
            return f"no cheaper chain keeps {self.energy:.3g} of its energy"
        wanted = "no partition" if self.members is None else f"no partition of {self.members}"
        return f"{wanted} of its {into} to {out} channels makes it cheaper"

    def _moments(self, subject: Subject, names: list[str], scanned: int = 0) -> dict[str, Tensor]:
        """Return the second moments of what enters the layers whose patches are small enough, by name.

        Of the example's images but for the first ``scanned``.
        """
        seen = subject.seen
        if not (self.data_aware and seen.real):
            return {}
        images = seen.example[scanned:][:MOMENT_IMAGES]

        def measure(conv: Any, args: Any, _size: int) -> tuple[Tensor]:
            found = patch_second_moment(args[0], conv.kernel_size, conv.stride, conv.padding, conv.dilation)
            return (found * (len(args[0]) / len(images)),)

        small = [n for n in names if seen.by_name()[n].module.weight[0].numel() <= AWARE_PATCH]
        return {name: found for name, (found,) in summed(subject.model, images, small, measure, before=True).items()}


def _unfit(layer: Layer) -> str | None:
    """Return why a layer has no interleaved form."""
    conv = layer.module
    if not isinstance(conv, nn.Conv2d):
        return "only convolutions are interleaved"
    if conv.groups > 1:
        return f"it is grouped already ({conv.groups} groups)"
    if isinstance(conv.padding, str):
        return f"its padding is {conv.padding!r}, not a number"
    if conv.padding_mode != "zeros":
        return f"it pads with {conv.padding_mode!r}"
    return None


def _finer(layer: Layer, options: Sequence[Option]) -> list[Option]:
    """Return the chains of ``options`` with some output channels left dense, only what is not dearer and worse.

    What a chain loses is taken to be lost evenly over its output channels.
    """
    conv = layer.module
    out, into, taps = conv.out_channels, conv.in_channels, conv.weight[0, 0].numel()
    positions = layer.macs // conv.weight.numel()
    bias = 0 if conv.bias is None else out
    # kernels are slow at ragged widths, and fine steps are needed in small layers only
    step = max(8, out // 64) if out >= 64 else 1
    found: list[tuple[int, float, dict[str, Any]]] = []
    for option in options:
        members, primary = option.setting["partitions"]
        for dense in range(step, out, step):
            rest = out - dense
            for leaving in {members if rest % members == 0 else 0, rest // primary if rest % primary == 0 else 0} - {0}:
                weights = taps * into * (dense + leaving) + rest * primary
                if weights * positions < layer.macs:
                    sizes = {"partitions": [members, primary], "out_partitions": [leaving, rest // leaving]}
                    found.append((weights, option.loss * rest / out, {**sizes, "dense": dense}))
    kept: list[Option] = []
    for weights, loss, setting in sorted(found, key=lambda item: item[:2]):
        if not kept or loss < kept[-1].loss:
            kept.append(Option(setting, weights * positions, weights + bias, loss))
    return kept
