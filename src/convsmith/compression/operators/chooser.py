"""Which interleaved structure for a budget: the widest block, and every structure of a given width side by side.

For a pair with L primary partitions of M channels and a primary kernel of S taps, ``Q = G (S M + L)`` weights carry the
width ``G = L M``. Since ``S M + L >= 2 sqrt(S G)``, the width is at most ``(Q / (2 sqrt(S)))^(2/3)``, reached where
``L = S M``: both factors then cost the same (IGCV1, section 4; 9 M for a 3x3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from convsmith.arguments import checked, integer, number, one_of
from convsmith.compression.operators.chain_spec import check_partitions, divisors
from convsmith.compression.operators.conditions import MOST_CHANNELS, balanced_partition
from convsmith.errors import InvalidArgument


@dataclass(frozen=True)
class Structure:
    """One way to connect ``channels`` with ``channels``.

    ``partitions``: K_1 .. K_n of the chain, the spatial factor first (a dense layer is ``(channels,)``).
    ``params``: its weights; ``macs``: per output position these, times the positions.
    """

    name: str
    channels: int
    partitions: tuple[int, ...]
    params: int
    macs: int

    @property
    def members(self) -> int:
        """M of a pair: channels of one primary partition."""
        return self.partitions[0]


@checked
def chain_params(partitions: Sequence[int], area: int = 9) -> int:
    """Return the weights of a strict chain: ``C (S K_1 + K_2 + ... + K_n)``.

    Examples:
        >>> chain_params((16, 16))
        40960
    """
    sizes = check_partitions(partitions)
    return math.prod(sizes) * (area * sizes[0] + sum(sizes[1:]))


@checked
def widest_bound(budget: float, area: int = 9) -> float:
    """Return the width no pair of that many weights exceeds, ``(Q / (2 sqrt(S)))^(2/3)``.

    Examples:
        >>> round(widest_bound(4672))
        85
    """
    number("budget", budget, least=1)
    number("area", area, least=1)
    return (budget / (2 * math.sqrt(area))) ** (2 / 3)


@checked
def widest_pairs(budget: int, area: int = 9) -> list[Structure]:
    """Return, for every number of members M, the widest pair within ``budget`` weights; the widest of all first.

    Examples:
        >>> widest = widest_pairs(4672)[0]
    """
    integer("budget", budget, least=1, most=MOST_CHANNELS**2)
    integer("area", area, least=1)
    found = []
    members = 1
    while (primary := _primary_within(budget, members, area)) >= 1:
        found.append(_structure("pair", (members, primary), area, 1))
        members += 1
    if not found:
        raise InvalidArgument(
            "the smallest pair, one channel, needs more", argument=f"{budget} weights", hint=f"at least {area + 1}"
        )
    return sorted(found, key=lambda entry: (-entry.channels, entry.params, entry.members))


@checked
def structures(
    channels: int, *, area: int = 9, positions: int = 1, budget: int | None = None, kind: str = "params"
) -> list[Structure]:
    """Return every structure of that width, lightest first: dense, all pairs, balanced longer chains.

    Args:
        channels: C in and out.
        area: taps of the spatial factor.
        positions: output positions, for the MACs.
        budget: leave out what costs more, in ``kind``.
        kind: ``"params"`` or ``"macs"``.

    Raises:
        InvalidArgument: a number out of bounds, an unknown kind, or a budget that nothing meets (names the lightest).

    Examples:
        >>> lightest = structures(64)[0]
    """
    one_of("kind", kind, ("params", "macs"))
    integer("channels", channels, least=1, most=MOST_CHANNELS)
    for name, value in (("area", area), ("positions", positions)):
        integer(name, value, least=1)
    if budget is not None:
        number("budget", budget)
    names: dict[tuple[int, ...], str] = {(channels,): "dense"}
    for members in divisors(channels) if channels > 1 else ():
        names[members, channels // members] = _pair_name(members, channels // members)
    for layers in range(2, 8):
        for chain in (balanced_partition(channels, layers, area=area), (1, *balanced_partition(channels, layers))):
            if 1 not in chain[1:]:
                names.setdefault(chain, "chain")
    rows = [_structure(name, partitions, area, positions) for partitions, name in names.items()]
    rows.sort(key=lambda row: (row.params, len(row.partitions)))
    if budget is None:
        return rows
    within = [row for row in rows if getattr(row, kind) <= budget]
    if not within:
        raise InvalidArgument(
            f"no structure of {channels} channels is that light",
            argument=f"at most {budget} {kind}",
            hint=f"the lightest, {rows[0].partitions}, has {getattr(rows[0], kind)}; or fewer channels",
        )
    return within


def _structure(name: str, partitions: tuple[int, ...], area: int, positions: int) -> Structure:
    params = chain_params(partitions, area)
    return Structure(name, math.prod(partitions), partitions, params, params * positions)


def _pair_name(members: int, primary: int) -> str:
    if members == 1:
        return "depthwise + dense 1x1"
    return "dense + scale" if primary == 1 else "pair"


def _primary_within(budget: int, members: int, area: int) -> int:
    """Return the largest L with ``L M (S M + L) <= budget``."""
    half = area * members / 2
    primary = int(-half + math.sqrt(half * half + budget / members)) + 1
    while primary and chain_params((members, primary), area) > budget:
        primary -= 1
    return primary
