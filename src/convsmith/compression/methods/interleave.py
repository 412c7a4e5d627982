"""The method ``interleave``: dense convolutions become interleaved chains (IGCV1), projected from the trained kernel.

A convolution of C = M L input channels becomes L groups of M channels with the old kernel size, then M' groups of L
pointwise; nothing stands between the two, so the chain is one linear map and can be projected in closed form
(`operators.projection`): a rank-1 decomposition per block, exact where the kernel has that structure.
Which layers, and with how many members M, is chosen by the budget from the sensitivity of every candidate. Chains
come in few sizes; where they leave more than 1 % of the budget unused, a layer keeps some of its output channels dense.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convsmith.compression.methods.method import METHODS, Applied, Method
from convsmith.compression.operators.backends import BACKENDS
from convsmith.compression.operators.interleaved import InterleavedGroupConv2d
from convsmith.compression.operators.projection import from_dense, project
from convsmith.compression.planning.budget import Option, assemble, plan_layers
from convsmith.compression.planning.moments import Moments
from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.replacement import StandIn, fresh_like, replace
from convsmith.compression.planning.subject import Subject
from convsmith.errors import InvalidArgument, close_matches
from convsmith.inspection.layers import Layer, LayerInventory, Weighted
from convsmith.inspection.modes import watching

#: largest input patch (channels x taps) for which the data-aware projection is used: its cost grows with the cube
AWARE_PATCH = 1152
#: rounds of refinement when weights are re-solved
SWEEPS = 12


class ChannelBias(nn.Module):
    """Add one number per channel: the bias that a linear chain cannot hold."""

    def __init__(self, channels: int, **like: Any) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels, **like))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.bias.view(1, -1, 1, 1)


class Interleaved(StandIn, nn.Sequential):
    """An interleaved chain, and the bias of the convolution it stands for if there was one."""

    def refit(self, weight: Tensor, moments: Moments, bias: Tensor | None) -> None:
        """Take over dense weights [1, o, d] with the least error on inputs of these ``moments``."""
        chain: Any = self[0]
        kernel = weight[0].reshape(chain.out_channels, chain.in_channels, *chain.weights[0].shape[2:])
        members = chain.weights[0].shape[0] // chain.primary
        entering, leaving = (chain.members, chain.primary), (members, chain.out_channels // members)
        moment = moments.damped()[0] if kernel[0].numel() <= AWARE_PATCH else None
        found = project(kernel, entering, leaving, second_moment=moment, sweeps=SWEEPS)
        with torch.no_grad():
            for parameter, part in zip(chain.weights, found.weights, strict=True):
                parameter.copy_(part)
            if bias is not None:
                last: Any = self[1]
                last.bias.copy_(bias)


class PartlyInterleaved(StandIn):
    """The first output channels by a dense convolution, the others by an interleaved chain, [B, C, H, W]."""

    def __init__(self, dense: nn.Conv2d, chain: Interleaved) -> None:
        super().__init__()
        self.dense = dense
        self.chain = chain

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.dense(x), self.chain(x)], 1)

    def refit(self, weight: Tensor, moments: Moments, bias: Tensor | None) -> None:
        """Take over dense weights [1, o, d]: the first rows as they are, the others by the chain."""
        rows = self.dense.out_channels
        with torch.no_grad():
            self.dense.weight.copy_(weight[0, :rows].reshape(self.dense.weight.shape))
            if bias is not None and self.dense.bias is not None:
                self.dense.bias.copy_(bias[:rows])
        chain: Any = self.chain
        chain.refit(weight[:, rows:], moments, None if bias is None else bias[rows:])


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
        backend: of the new layers, see `convsmith.compression.operators.backends`.
    """

    members: int | None = None
    energy: float | None = None
    data_aware: bool = True
    backend: str = "auto"

    budgets: ClassVar[frozenset[str]] = frozenset({"macs", "params"})
    reconstructs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if self.members is not None and (not isinstance(self.members, int) or self.members < 1):
            raise InvalidArgument("a partition has one member or more", argument="members", given=self.members)
        if self.energy is not None and not 0 < self.energy <= 1:
            raise InvalidArgument("energy is a share above 0 and at most 1", argument="energy", given=self.energy)
        if self.members is not None and self.energy is not None:
            raise InvalidArgument("give members or energy, not both", given=f"{self.members}, {self.energy}")
        if self.backend != "auto" and self.backend not in BACKENDS:
            hint = close_matches(self.backend, ["auto", *BACKENDS])
            raise InvalidArgument("no backend has this name", argument="backend", given=self.backend, hint=hint)

    def plan(self, subject: Subject, budget: Budget | None) -> Plan:
        """Choose the partitions per layer."""
        skipped = self.left_alone(subject)
        table: list[tuple[Layer, list[Option]]] = []
        for layer in subject.seen.usable("conv", "linear", "transposed", skip=self.skip):
            reason = _unfit(layer)
            options = [] if reason else self._options(layer)
            if options:
                table.append((layer, options))
            else:
                skipped[layer.name] = reason or self._none(layer)
        if budget is None and (self.members is not None or self.energy is not None):
            picked = [(layer, min(options, key=lambda o: o.macs), None) for layer, options in table]
            return assemble("interleave", subject, picked, skipped=skipped)
        return plan_layers(
            "interleave",
            subject,
            table,
            lambda layer, option: _projected(layer.module, option.setting, None, self.backend),
            budget or Budget("macs", 0.5),
            skipped=skipped,
            finer=_finer,
        )

    def apply(self, subject: Subject, plan: Plan) -> Applied:
        """Replace the planned layers."""
        layers = {name: {**setting, "backend": self.backend} for name, setting in plan.settings().items()}
        for name, setting in layers.items():
            if reason := _unfit(subject.seen.by_name()[name]):
                raise InvalidArgument(f"{name} cannot be interleaved: {reason}", argument="plan", given=setting)
        inputs = self._inputs(subject.model, subject.seen, list(layers))
        for name, setting in layers.items():
            old = subject.model.get_submodule(name)
            replace(subject.model, name, _projected(old, setting, inputs.get(name), self.backend))
        return Applied(subject.model, layers)

    @classmethod
    def empty(cls, layer: nn.Module, setting: dict[str, Any]) -> nn.Module:
        """Return the chain with fresh weights."""
        return _skeleton(layer, setting, setting["backend"])

    def _options(self, layer: Layer) -> list[Option]:
        """Return the chains that are cheaper than the layer, dearest first."""
        found: dict[tuple[int, int], Option] = {}
        conv = layer.module
        for members in range(1, conv.in_channels):
            if conv.in_channels % members or (self.members is not None and members != self.members):
                continue
            primary = conv.in_channels // members
            for leaving in {(members, conv.out_channels // members), (conv.out_channels // primary, primary)}:
                if leaving[0] < 1 or leaving[0] * leaving[1] != conv.out_channels or primary == 1:
                    continue
                setting = {"partitions": [members, primary], "out_partitions": list(leaving)}
                weights = primary * members * leaving[0] * conv.weight[0, 0].numel() + leaving[0] * primary * leaving[1]
                positions = layer.output_shape[2] * layer.output_shape[3] * layer.calls
                if weights * positions >= layer.macs:
                    continue
                loss = 1 - project(conv.weight, (members, primary), leaving).energy
                if self.energy is not None and 1 - loss < self.energy:
                    continue
                params = weights + (0 if conv.bias is None else conv.bias.numel())
                found[(members, leaving[0])] = Option(setting, weights * positions, params, max(loss, 0.0))
        return sorted(found.values(), key=lambda o: -o.macs)

    def _none(self, layer: Layer) -> str:
        conv = layer.module
        if self.energy is not None:
            return f"no cheaper chain keeps {self.energy:.3g} of its energy"
        wanted = "no partition" if self.members is None else f"no partition of {self.members}"
        return f"{wanted} of its {conv.in_channels} to {conv.out_channels} channels makes it cheaper"

    def _inputs(self, model: nn.Module, seen: LayerInventory, names: list[str]) -> dict[str, Tensor]:
        """Return what enters the layers whose patches are small enough, [B, C, H, W] by name."""
        if not (self.data_aware and seen.real):
            return {}
        kept: dict[str, list[Tensor]] = {}

        def watch(name: str) -> Callable[..., None]:
            return lambda _module, args: kept.setdefault(name, []).append(args[0].detach())

        small = [n for n in names if seen.by_name()[n].module.weight[0].numel() <= AWARE_PATCH]
        with watching(model, {name: watch(name) for name in small}, before=True):
            model(seen.example[:64])
        return {name: torch.cat(values) for name, values in kept.items()}


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
    positions = layer.output_shape[2] * layer.output_shape[3] * layer.calls
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


def _projected(conv: Weighted, setting: dict[str, Any], inputs: Tensor | None, backend: str) -> nn.Module:
    dense = _checked_dense(conv, setting)
    rest = _rows(conv, dense, conv.out_channels) if dense else conv
    chain, _ = from_dense(rest, setting["partitions"], setting["out_partitions"], inputs=inputs, backend=backend)
    return _assembled(chain, rest, _rows(conv, 0, dense) if dense else None)


def _skeleton(conv: Weighted, setting: dict[str, Any], backend: str) -> nn.Module:
    (members, primary), (out_members, out_primary) = setting["partitions"], setting["out_partitions"]
    dense = _checked_dense(conv, setting)
    chain = InterleavedGroupConv2d(
        primary,
        members,
        conv.kernel_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        out_primary=out_primary,
        out_members=out_members,
        backend=backend,
        device=conv.weight.device,
        dtype=conv.weight.dtype,
    )
    return _assembled(chain, _rows(conv, dense, conv.out_channels), _rows(conv, 0, dense) if dense else None)


def _checked_dense(conv: Weighted, setting: dict[str, Any]) -> int:
    dense = setting.get("dense", 0)
    if not isinstance(dense, int) or not 0 <= dense < conv.out_channels:
        raise InvalidArgument(
            "some output channels stay dense, none to all but one",
            argument=f"dense of {conv.out_channels} output channels",
            given=dense,
        )
    return dense


def _rows(conv: Weighted, first: int, last: int) -> nn.Conv2d:
    """Return the convolution that computes the output channels from ``first`` to ``last`` (exclusive)."""
    part: nn.Conv2d = fresh_like(conv, out_channels=last - first)
    with torch.no_grad():
        part.weight.copy_(conv.weight[first:last])
        if part.bias is not None:
            part.bias.copy_(conv.bias[first:last])
    return part


def _assembled(chain: nn.Module, conv: Weighted, dense: nn.Conv2d | None) -> nn.Module:
    """Return the chain with the bias of ``conv``, the rows it stands for, behind the dense rows if there are any."""
    interleaved = Interleaved(chain)
    if conv.bias is not None:
        bias = ChannelBias(conv.out_channels, device=conv.weight.device, dtype=conv.weight.dtype)
        with torch.no_grad():
            bias.bias.copy_(conv.bias)
        interleaved.append(bias)
    return interleaved if dense is None else PartlyInterleaved(dense, interleaved)
