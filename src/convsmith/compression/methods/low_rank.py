"""The method ``low-rank``: which layers are factored, in which decomposition, at which rank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convsmith.arguments import number, one_of
from convsmith.compression.methods.decomposition import (
    BY_OUTPUTS,
    DECOMPOSITIONS,
    Outputs,
    counts,
    factor,
    full_rank,
    skeleton,
    spectrum,
)
from convsmith.compression.methods.method import METHODS, Applied, Method
from convsmith.compression.planning.budget import SCAN_IMAGES, Option, assemble, plan_layers
from convsmith.compression.planning.moments import chosen_positions, sampled_outputs, summed
from convsmith.compression.planning.plan import Budget, Plan
from convsmith.compression.planning.reconstruct import FEWEST
from convsmith.compression.planning.replacement import fresh_like, replace
from convsmith.compression.planning.subject import Subject
from convsmith.errors import InvalidArgument
from convsmith.inspection.layers import Layer, Weighted

#: ranks offered to the budget per layer, at most
LEVELS = 64
#: share of a layer's operations that a chain may take: two layers for one are no gain above
DEAREST = 0.95
#: values of every output, in multiples of their number, below which their covariance is not known
ENOUGH = 4
#: values of every output, at most: more of one image's positions say little new
ROWS = 16384
_DEPTHWISE = "a depthwise layer takes longer in two parts than whole (name a decomposition to factor it all the same)"


@METHODS.register("low-rank")
@dataclass(frozen=True)
class LowRankMethod(Method):
    """Factor convolutions and linear layers into thinner ones (SVD, interpolative, spatial SVD, Tucker-2).

    Args:
        rank: ``"full"`` (exact), a share of the full rank in (0, 1], or a number of channels, for every layer.
        energy: keep this share of each layer's energy (0 to 1], wherever that makes the layer cheaper.
        decomposition: ``"svd"``, ``"interpolative"`` (the same map in fewer numbers), ``"spatial"``, ``"tucker"``, or
            ``"auto"``: whichever keeps most energy at half cost (under a budget of time none is interpolative), and
            none for depthwise layers, which runtimes execute faster whole.
        data_aware: choose the basis of the first two from the layer's outputs on the example images, where they give at
            least four values of every output.

    Without rank, energy or a budget, half of the MACs are kept.
    """

    rank: int | float | str | None = None
    energy: float | None = None
    decomposition: str = "auto"
    data_aware: bool = True

    budgets: ClassVar[frozenset[str]] = frozenset({"macs", "params"})
    reconstructs: ClassVar[bool] = True

    def __post_init__(self) -> None:
        one_of("decomposition", self.decomposition, (*DECOMPOSITIONS, "auto"))
        if self.energy is not None:
            number("energy", self.energy, above=0, most=1)
        if self.rank is not None and self.energy is not None:
            raise InvalidArgument("give rank or energy, not both", given=f"rank {self.rank}, energy {self.energy}")
        share = isinstance(self.rank, float) and 0 < self.rank <= 1
        count = isinstance(self.rank, int) and not isinstance(self.rank, bool) and self.rank >= 1
        if self.rank not in (None, "full") and not share and not count:
            rule = "a rank is 'full', a share in (0, 1] or a positive number of channels"
            raise InvalidArgument(rule, argument="rank", given=self.rank)

    def plan(self, subject: Subject, budget: Budget | None) -> Plan:
        """Choose decomposition and rank per layer; see `Method.plan`."""
        # a basis fits the images it is taken from: the scan judges it on others where there are enough
        scanned = SCAN_IMAGES if len(subject.seen.example) >= FEWEST else 0
        outputs = self._outputs(subject, scanned)
        table, skipped = self.table(subject, lambda x: self._options(x, outputs.get(x.name), subject.timed))
        if budget is None and (self.rank is not None or self.energy is not None):
            picked = [(layer, self._pick(layer, options, skipped), None) for layer, options in table]
            return assemble("low-rank", subject, picked, skipped=skipped)

        bases: dict[str, dict[str, Tensor]] = {}

        def build(layer: Layer, option: Option) -> nn.Module:
            basis = outputs.get(layer.name) if option.setting["decomposition"] in BY_OUTPUTS else None
            module = layer.module
            if basis is not None and module.bias is None and subject.resolved:
                module = _biased(module)  # the mean that is cut off comes back when weights are re-solved
            if layer.name not in bases:  # layers are scanned one after the other
                bases.clear()
            kept = bases.setdefault(layer.name, {})
            return factor(module, **option.setting, outputs=basis, memory=kept)

        return plan_layers("low-rank", subject, table, build, budget or Budget("macs", 0.5), skipped=skipped)

    def apply(self, subject: Subject, plan: Plan) -> Applied:
        """Replace the planned layers."""
        outputs, layers = self._outputs(subject), plan.settings()
        notes = []
        for name, setting in layers.items():
            layer = subject.seen.by_name()[name]
            exact = setting["rank"] == full_rank(layer.module, "svd")
            basis = None if exact else outputs.get(name)
            replace(subject.model, name, factor(layer.module, setting["decomposition"], setting["rank"], basis))
            macs = counts(layer, setting["decomposition"], setting["rank"])[0]
            if macs > layer.macs:
                notes.append(f"{name}: {macs / layer.macs:.2f} times the MACs of the layer it replaces")
        return Applied(subject.model, layers, tuple(notes))

    @classmethod
    def empty(cls, layer: nn.Module, setting: dict[str, Any]) -> nn.Module:
        """Return the chain with fresh weights."""
        return skeleton(layer, setting["decomposition"], setting["rank"])

    def _decomposition(self, layer: Layer, outputs: Outputs | None, timed: bool) -> str | None:
        """Return the asked decomposition if it applies, or the best one at half the layer's MACs."""
        able = [decomposition for decomposition in DECOMPOSITIONS if full_rank(layer.module, decomposition)]
        if self.decomposition != "auto":
            return self.decomposition if self.decomposition in able else None
        if self.rank is not None:
            return "svd" if able else None
        if timed:  # putting outputs back in order costs what the fewer numbers save
            able = [decomposition for decomposition in able if decomposition != "interpolative"]
        if len(able) < 2:
            return able[0] if able else None

        def energy(decomposition: str) -> float:
            kept = spectrum(layer.module, decomposition, outputs)
            half = [r for r in range(1, len(kept) + 1) if counts(layer, decomposition, r)[0] <= 0.5 * layer.macs]
            return float(kept[half[-1] - 1]) if half else -1.0

        return max(able, key=energy)

    def _options(self, layer: Layer, outputs: Outputs | None, timed: bool) -> list[Option] | str:
        if layer.is_depthwise and self.decomposition == "auto":
            return _DEPTHWISE
        decomposition = self._decomposition(layer, outputs, timed)
        if decomposition is None:
            return f"decomposition {self.decomposition!r} does not apply to this layer"
        kept = spectrum(layer.module, decomposition, outputs)
        ranks: Sequence[int] = range(1, len(kept) + 1)
        if self.rank is None and self.energy is None:
            ranks = [r for r in ranks if counts(layer, decomposition, r)[0] <= DEAREST * layer.macs]
            if len(ranks) > LEVELS:
                ranks = sorted({ranks[round(i * (len(ranks) - 1) / (LEVELS - 1))] for i in range(LEVELS)})
        return [
            Option(
                {"decomposition": decomposition, "rank": r}, *counts(layer, decomposition, r), float(1 - kept[r - 1])
            )
            for r in ranks
        ] or "no rank makes it cheaper"

    def _pick(self, layer: Layer, options: list[Option], skipped: dict[str, str]) -> Option:
        same = Option({}, layer.macs, layer.params, 0.0)
        if self.energy is not None:
            option = next((o for o in options if 1 - o.loss >= self.energy - 1e-12), options[-1])
            if option.macs >= layer.macs:
                skipped[layer.name] = f"keeping {self.energy:.3g} of the energy would not make it cheaper"
                return same
            return option
        if self.rank == "full":
            return options[-1]
        rank = self.rank if isinstance(self.rank, int) else max(1, round(float(self.rank or 1) * len(options)))
        return options[min(int(rank), len(options)) - 1]

    def _outputs(self, subject: Subject, scanned: int = 0) -> dict[str, Outputs]:
        """Return the moments of the layers' outputs on the example but for its first images, which a scan uses."""
        seen = subject.seen
        if not (self.data_aware and seen.real) or self.rank == "full":
            return {}
        names = [layer.name for layer in seen.usable("conv", "linear", skip=self.skip)]
        found: dict[str, Outputs] = subject.once(
            ("outputs", scanned), lambda: output_moments(subject.model, seen.example[scanned:], names)
        )
        return found


def _biased(module: Weighted) -> Weighted:
    """Return the layer with a bias of zero."""
    made = fresh_like(module, bias=True)
    with torch.no_grad():
        made.weight.copy_(module.weight)
        made.bias.zero_()
    return made


def output_moments(model: nn.Module, images: Tensor, names: Sequence[str]) -> dict[str, Outputs]:
    """Return mean and covariance of each layer's bias-free output over ``images`` [B, C, H, W] and positions.

    A layer with fewer than `ENOUGH` values an output is left out: a basis of so few would fit these images alone.
    """

    def measure(module: Weighted, _args: Any, out: Tensor, size: int) -> tuple[int, Tensor, Tensor]:
        bias = module.bias.detach() if module.bias is not None else None
        share = -(-ROWS * size // (len(out) * len(images)))
        rows = sampled_outputs(module, out, chosen_positions(module, tuple(out.shape), share, 0))
        rows = (rows if bias is None else rows - bias).double()
        return len(rows), rows.sum(0), rows.T @ rows

    return {
        name: Outputs(total / n, square / n - torch.outer(total / n, total / n))
        for name, (n, total, square) in summed(model, images, names, measure, before=False).items()
        if n >= ENOUGH * len(total)
    }
