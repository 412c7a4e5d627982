"""The methods ``prune-filters`` and ``prune-channels``: whole channels leave the network, nothing is masked.

Both remove channels; they differ in what is judged. ``prune-filters`` judges the rows that produce a channel (Li et
al. 2017), ``prune-channels`` the columns that read it (He et al. 2017). Scores: L1 norm, the scale of the batch
normalisation (Liu et al. 2017, "network slimming"), or any scorer's own: pass ``importance``, scores by layer name,
one per output channel (the routes of `convsmith.interpretation`, for one). With images both ask what a channel's
readers lose, of which the least goes first (`convsmith.compression.methods.ranking`). The result must agree with the
network in which the same channels are masked (`convsmith.compression.methods.removal`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from convsmith.arguments import integer, number, one_of
from convsmith.compression.methods.channels import Group, Ledger, find_groups, scores
from convsmith.compression.methods.method import METHODS, Applied, Method
from convsmith.compression.methods.ranking import SCANNED, Ranking, curve, input_moments, least_missed
from convsmith.compression.methods.removal import (
    AGREE,
    remove_and_compare,
    restructure,
    rows_left,
    structure,
    traceable,
)
from convsmith.compression.planning.budget import SCAN_IMAGES, SLACKS, scan_images, unreachable
from convsmith.compression.planning.plan import Budget, Choice, Plan
from convsmith.compression.planning.prefix import Prefix
from convsmith.compression.planning.reconstruct import FEWEST
from convsmith.compression.planning.subject import Subject
from convsmith.errors import ConvsmithError, InvalidArgument, RunFailed, close_matches
from convsmith.inspection.layers import LayerInventory
from convsmith.inspection.modes import copied

CRITERIA = ("auto", "surgeon", "l1", "bn-scale")


@dataclass(frozen=True)
class _Prune(Method):
    """Settings of both methods.

    Args:
        criterion: ``"l1"``, ``"bn-scale"``, ``"surgeon"`` (what the readers of a channel lose on the example images if
            their other weights make good for it) or ``"auto"``: the last with 64 real images or more, else the first.
        importance: instead of a criterion: scores by layer name [output channels], or a function of the model that
            returns them. Higher is more important; a group without scores is left alone.
        keep: the share of channels every group keeps, in (0, 1]; without it a budget decides (half of the MACs).
        round_to: keep multiples of this many channels (8 suits most kernels).
        floor: the share of a group's channels that always stays.
    """

    criterion: str = "auto"
    importance: Mapping[str, Tensor] | Callable[[nn.Module], Mapping[str, Tensor]] | None = None
    keep: float | None = None
    round_to: int = 1
    floor: float = 0.1

    budgets: ClassVar[frozenset[str]] = frozenset({"macs", "params"})
    reconstructs: ClassVar[bool] = True
    #: what is judged: "filters" or "channels"
    side: ClassVar[str] = ""

    def __post_init__(self) -> None:
        one_of("criterion", self.criterion, CRITERIA)
        if self.keep is not None:
            number("keep", self.keep, above=0, most=1)
        integer("round_to", self.round_to, least=1)
        number("floor", self.floor, least=0, below=1)

    def plan(self, subject: Subject, budget: Budget | None) -> Plan:
        """Choose how many channels every group keeps."""
        groups, ranking, skipped = self._ranked(subject)
        whole = subject.cost
        ledger = Ledger(subject, groups)
        harms: dict[str, float] = {}
        if budget is None and self.keep is not None:
            removed = {g.root: g.size - self._rounded(self.keep * g.size, g.size) for g in groups}
        else:
            budget = budget or Budget("macs", 0.5)
            curves = {}
            prefix = Prefix(subject.model, subject.seen, scan_images(whole.macs * len(SCANNED) * len(groups)))
            moments = self._moments(subject, groups) if subject.resolved else None
            for done, group in enumerate(groups):
                subject.tell(done, len(groups), f"scan {group.root}")
                work = partial(curve, prefix, group, ranking[group.root], moments)
                curves[group.root] = subject.once((group.root, "curve"), work)
            removed = self._spend(groups, ledger, curves, budget, skipped)
            harms = {root: harm[removed[root]] for root, harm in curves.items()}
        choices = tuple(
            Choice(
                g.root,
                {"keep": g.size - removed[g.root], "of": g.size} if removed[g.root] else {},
                (ledger.layer(g.root, "macs", {}), ledger.layer(g.root, "macs", removed)),
                (ledger.layer(g.root, "params", {}), ledger.layer(g.root, "params", removed)),
                harms.get(g.root),
                _coupled(g),
            )
            for g in groups
        )
        after = {kind: ledger.cost(kind, removed) for kind in ("macs", "params")}
        nearest: tuple[float, ...] = ()
        if budget is not None and after[budget.kind] < (1 - SLACKS[0]) * budget.keep * ledger.before[budget.kind]:
            back = [{**removed, root: max(n - self.round_to, 0)} for root, n in removed.items() if n]
            costs = [after[budget.kind], *sorted(ledger.cost(budget.kind, fewer) for fewer in back)[:1]]
            nearest = tuple(value / ledger.before[budget.kind] for value in costs)
        macs, params = (whole.macs, after["macs"]), (whole.params, after["params"])
        return Plan(f"prune-{self.side}", choices, macs, params, budget, skipped, nearest=nearest)

    def apply(self, subject: Subject, plan: Plan) -> Applied:
        """Remove the planned numbers of channels, least important first, and prove the result."""
        model, seen = subject.model, subject.seen
        groups, ranking, _ = self._ranked(subject)
        known = {group.root: group for group in groups}
        going: dict[str, Tensor] = {}
        for root, setting in plan.settings().items():
            if root not in known:
                raise InvalidArgument("the plan removes channels that cannot go", given=root)
            size = known[root].size
            keep = integer(f"keep of {root}", setting["keep"], least=1, most=size)
            if keep < size:
                going[root] = ranking[root].order[: size - keep].sort().values
        if not going:
            return Applied(model, {})
        before, rows = structure(model), rows_left(seen, known, going)
        worst = remove_and_compare(model, seen, known, going)
        if not worst < AGREE:
            raise RunFailed(
                "the pruned network does not compute what masking the same channels computes",
                given=f"relative difference {worst:.2g}",
                hint="name the layers it should leave alone with skip=",
            )
        layers = {n: s for n, s in structure(model).items() if s != before[n]}
        for root, channels in going.items():
            layers[root]["kept"] = sorted(set(range(known[root].size)) - set(channels.tolist()))
        return Applied(model, layers, rows=rows)

    @classmethod
    def restore_structure(cls, model: nn.Module, layers: dict[str, Any]) -> nn.Module:
        """Give the layers named their new widths."""
        return restructure(model, layers)

    def _ranked(self, subject: Subject) -> tuple[list[Group], dict[str, Ranking], dict[str, str]]:
        """Return groups with scores, their channels from least to most important, and the reasons for the rest."""
        return subject.once("ranked", lambda: self._rank(subject))  # type: ignore[no-any-return]

    def _moments(self, subject: Subject, groups: list[Group]) -> dict[str, Tensor] | None:
        """Return the moments of what the groups' readers read, None without images enough.

        The scan judges on other images than those they are taken from.
        """
        seen = subject.seen
        if not seen.real or len(seen.example) < FEWEST:
            return None
        found: dict[str, Tensor] = subject.once(
            "moments", lambda: input_moments(subject.model, seen.example[SCAN_IMAGES:], groups)
        )
        return found

    def _rank(self, subject: Subject) -> tuple[list[Group], dict[str, Ranking], dict[str, str]]:
        model, seen = subject.model, subject.seen
        groups, skipped = find_groups(model, seen, self.skip)
        certain = traceable(seen)
        groups = [g for g in groups if (certain and not g.traced) or _provable(model, seen, g, skipped)]
        importance = self.importance(model) if callable(self.importance) else self.importance
        if importance is not None:
            self._check_importance(importance, seen)
        moments = self._moments(subject, groups)
        if self.criterion == "surgeon" and moments is None:
            raise InvalidArgument(
                "the surgeon needs images",
                argument="criterion",
                given=seen.rows,
                hint=f"pass {FEWEST} real ones or more",
            )
        surgeon = importance is None and self.criterion in ("auto", "surgeon")
        criterion = "l1" if self.criterion == "auto" else self.criterion
        ranking = {}
        for group in groups:
            if surgeon and moments is not None:
                ranking[group.root] = least_missed(model, group, moments)
                continue
            found = scores(model, group, side=self.side, criterion=criterion, importance=importance)
            if isinstance(found, str):
                skipped.setdefault(group.root, found)
            else:
                worth, order = found.sort(stable=True)
                ranking[group.root] = Ranking(order, worth)
        return [group for group in groups if group.root in ranking], ranking, skipped

    def _check_importance(self, importance: Mapping[str, Tensor], seen: LayerInventory) -> None:
        layers = seen.by_name()
        for name, value in importance.items():
            if name not in layers:
                raise InvalidArgument(
                    "importance names a layer this network lacks", given=name, hint=close_matches(name, layers)
                )
            given, width = torch.as_tensor(value), layers[name].channels()
            if given.numel() != width or not given.isfinite().all():
                rule = "importance has one finite score per output channel"
                raise InvalidArgument(rule, argument=f"{name}: {width} scores", given=tuple(given.shape))

    def _rounded(self, wanted: float, size: int) -> int:
        """Return the number of channels to keep nearest to ``wanted``: a multiple of round_to, not below floor."""
        least = max(1, math.ceil(self.floor * size))
        keep = round(wanted / self.round_to) * self.round_to
        if keep < least:
            keep = math.ceil(least / self.round_to) * self.round_to
        return min(size, keep)

    def _spend(
        self,
        groups: list[Group],
        ledger: Ledger,
        curves: Mapping[str, list[float]],
        budget: Budget,
        skipped: Mapping[str, str],
    ) -> dict[str, int]:
        """Remove, step by step, where the least sensitivity is done per unit of cost, until the budget holds.

        A step is a 32nd of the group or ``round_to``. Then channels come back, the most useful first, as long as the
        budget still holds.
        """
        removed = {g.root: 0 for g in groups}
        limit = budget.keep * ledger.before[budget.kind]
        now = ledger.cost(budget.kind, removed)

        def effect(group: Group, gone: int) -> tuple[int, float]:
            """Return the cost with so many channels of the group gone, and what that adds to the sensitivity."""
            line = curves[group.root]
            return ledger.cost(budget.kind, {**removed, group.root: gone}), line[gone] - line[removed[group.root]]

        while now > limit:
            steps = []
            for g in groups:
                left = g.size - removed[g.root]
                gone = g.size - min(left, self._rounded(left - max(self.round_to, g.size // 32), g.size))
                after, harm = effect(g, gone)
                if after < now:
                    steps.append((harm / (now - after), g.root, gone, after))
            if not steps:
                least = now / ledger.before[budget.kind]
                raise unreachable(f"prune-{self.side}", budget, least, skipped, " lower floor,")
            _, root, gone, now = min(steps, key=lambda step: step[0])
            removed[root] = gone
        while True:
            back = []
            for g in groups:
                gone = g.size - self._rounded(g.size - removed[g.root] + self.round_to, g.size)
                if gone < removed[g.root]:
                    after, harm = effect(g, gone)
                    if after <= limit:
                        back.append((harm, g.root, gone))
            if not back:
                return removed
            _, root, gone = min(back, key=lambda step: step[0])
            removed[root] = gone


@METHODS.register("prune-filters")
@dataclass(frozen=True)
class PruneFilters(_Prune):
    """Remove the channels whose producing filters (rows) matter least."""

    side: ClassVar[str] = "filters"


@METHODS.register("prune-channels")
@dataclass(frozen=True)
class PruneChannels(_Prune):
    """Remove the channels whose readers (columns) matter least."""

    side: ClassVar[str] = "channels"


def _provable(model: nn.Module, seen: LayerInventory, group: Group, skipped: dict[str, str]) -> bool:
    """Try half of the group on a copy; note the reason in ``skipped`` if removal is not what masking is."""
    going = {group.root: torch.arange(group.size // 2)}
    try:
        worst = remove_and_compare(copied(model), seen, {group.root: group}, going)
    except ConvsmithError as error:
        skipped[group.root] = f"a trial removal failed: {error.given}"
        return False
    if not worst < AGREE:
        skipped[group.root] = f"a trial removal changed more than masking does (relative difference {worst:.2g})"
    return worst < AGREE


def _coupled(group: Group) -> str:
    names = [p.name for p in group.producers if p.name != group.root]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"with {', '.join(names[:3])}{more}" if names else ""
