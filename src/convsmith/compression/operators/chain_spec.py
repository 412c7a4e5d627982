"""Which channel reaches which: group convolutions and fixed permutations as data, and the paths through them.

A chain of block-diagonal maps is described by its factors alone, before any weight exists. Channel numbers are written
in mixed radix: with ``partitions`` (K_1, ..., K_n) channel ``c = d_1 + K_1 (d_2 + K_2 (d_3 + ...))`` and factor ``l``
mixes digit ``d_l`` only. IGCV1 with L primary partitions of M members is ``(M, L)``: channel order ``(l, m)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from convsmith.arguments import checked, integer, spelled
from convsmith.errors import InvalidArgument


@dataclass(frozen=True)
class ChannelPermutation:
    """A channel permutation: see the channels as ``view``, transpose to ``dims``, flatten.

    ``x[:, order.index()]`` is the permuted tensor; written as a view it needs no index and exports without a gather.
    """

    view: tuple[int, ...]
    dims: tuple[int, ...]

    def index(self) -> Tensor:
        """Return the input channel of every output position, [C]."""
        return torch.arange(math.prod(self.view)).view(self.view).permute(self.dims).reshape(-1)

    def inverse(self) -> ChannelPermutation:
        """Return the order that undoes this one."""
        back = tuple(self.dims.index(position) for position in range(len(self.dims)))
        return ChannelPermutation(tuple(self.view[d] for d in self.dims), back)

    def __call__(self, x: Tensor) -> Tensor:
        """Reorder the channels of ``x`` [B, C, H, W]; its memory layout is kept."""
        batch, channels, height, width = x.shape
        axes = range(len(self.view))
        if is_channels_last(x):
            grid = x.permute(0, 2, 3, 1).reshape(batch, height, width, *self.view)
            grid = grid.permute(0, 1, 2, *(3 + self.dims[axis] for axis in axes))
            return grid.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        grid = x.reshape(batch, *self.view, height, width)
        last = len(self.view) + 1
        grid = grid.permute(0, *(1 + self.dims[axis] for axis in axes), last, last + 1)
        return grid.reshape(batch, channels, height, width)


def is_channels_last(x: Tensor) -> bool:
    """Whether ``x`` [B, C, H, W] is laid out channels last and not both ways; under vmap it counts as not."""
    try:
        return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    except RuntimeError:  # torch does not tell it of a batched tensor
        return False


@dataclass(frozen=True)
class GroupConvSpec:
    """One group convolution seen from outside.

    ``order``: the channels are put in this order first (``None``: as they are); then ``groups`` blocks of
    ``in_channels / groups`` channels each go to ``out_channels / groups``. ``slow``, ``fast``: in a strict chain the
    sizes of the digits above and below the mixed one: the factor contracts the middle axis of ``[slow, K, fast]``
    without moving data. ``fast = 0``: there is no such view.
    """

    in_channels: int
    out_channels: int
    groups: int
    order: ChannelPermutation | None = None
    slow: int = 1
    fast: int = 0

    @property
    def members_in(self) -> int:
        """Channels coming into one block."""
        return self.in_channels // self.groups

    @property
    def members_out(self) -> int:
        """Channels going out of one block."""
        return self.out_channels // self.groups


@dataclass(frozen=True)
class ChainSpec:
    """Factors in the order they act, and the order of the channels after the last one (``None``: as they are)."""

    factors: tuple[GroupConvSpec, ...]
    final_order: ChannelPermutation | None = None

    @property
    def in_channels(self) -> int:
        """Channels into the chain."""
        return self.factors[0].in_channels

    @property
    def out_channels(self) -> int:
        """Channels out of the chain."""
        return self.factors[-1].out_channels

    @property
    def is_view(self) -> bool:
        """Whether every factor contracts one axis of a view, so that no permutation is needed at all."""
        return all(factor.fast for factor in self.factors)


@checked
def shuffle(channels: int, groups: int) -> ChannelPermutation:
    """Return the channel shuffle: view as (groups, channels/groups), transpose, flatten.

    It equals the authors' Reorder(groups) and ``nn.ChannelShuffle(groups)``; ``shuffle(C, C/groups)`` undoes it.

    Examples:
        >>> permutation = shuffle(8, 2)
    """
    check_divides(groups, channels, "the groups of a channel shuffle")
    return ChannelPermutation((groups, channels // groups), (1, 0))


@checked
def mixed_radix(partitions: Sequence[int], out_partitions: Sequence[int] | None = None) -> ChainSpec:
    """Return the strict chain that mixes one digit of the channel number per factor (IGCV2; IGCV1 is two digits).

    Args:
        partitions: sizes K_1 .. K_n of the digits, the first varying fastest; their product is the input's channels.
        out_partitions: sizes after each factor, where the chain changes the width; the same by default.

    Examples:
        >>> mixed_radix((4, 4)).in_channels
        16
    """
    in_sizes = check_partitions(partitions)
    out_sizes = in_sizes if out_partitions is None else check_partitions(out_partitions)
    if len(in_sizes) != len(out_sizes):
        raise InvalidArgument(
            "partitions and out_partitions have the same number of digits",
            given=f"{len(in_sizes)} and {len(out_sizes)}",
        )
    digits = tuple(reversed(range(len(in_sizes))))  # slow to fast
    sizes = list(in_sizes)
    layout = digits
    factors = []
    for digit, members_out in enumerate(out_sizes):
        wanted = (*(d for d in digits if d != digit), digit)
        order = _order(layout, wanted, sizes)
        fast, slow = math.prod(sizes[:digit]), math.prod(sizes[digit + 1 :])
        groups, channels = slow * fast, slow * fast * sizes[digit]
        sizes[digit] = members_out
        factors.append(GroupConvSpec(channels, groups * members_out, groups, order, slow, fast))
        layout = wanted
    return ChainSpec(tuple(factors), _order(layout, digits, sizes))


def _order(layout: tuple[int, ...], wanted: tuple[int, ...], sizes: Sequence[int]) -> ChannelPermutation | None:
    """Return the order that turns one sequence of digits (slow to fast) into another, digits of size 1 left out."""
    old = [digit for digit in layout if sizes[digit] > 1]
    new = [digit for digit in wanted if sizes[digit] > 1]
    if old == new:
        return None
    return ChannelPermutation(tuple(sizes[digit] for digit in old), tuple(old.index(digit) for digit in new))


@checked
def interleaved(
    primary: int,
    members: int,
    out_primary: int | None = None,
    out_members: int | None = None,
    groups: int | None = None,
) -> ChainSpec:
    """Return IGCV1's chain: L = ``primary`` partitions of M = ``members``, channel order (l, m).

    ``groups``: partitions of the secondary convolution, as many as ``out_members`` by default. Fewer merge
    neighbouring ones: the authors' residual networks do that where they widen, with more than one path per pair.

    Examples:
        >>> interleaved(4, 8).in_channels
        32
    """
    out = primary if out_primary is None else out_primary, members if out_members is None else out_members
    primary, members, out_primary, out_members = check_partitions([primary, members, *out])
    if groups is None or groups == out_members:
        return mixed_radix((members, primary), (out_members, out_primary))
    check_divides(groups, primary * out_members, "the groups of the secondary convolution")
    check_divides(groups, out_primary * out_members, "the groups of the secondary convolution")
    first = GroupConvSpec(primary * members, primary * out_members, primary, None, primary, 1)
    second = GroupConvSpec(
        primary * out_members, out_primary * out_members, groups, shuffle(primary * out_members, primary)
    )
    return ChainSpec((first, second), shuffle(out_primary * out_members, out_members))


@checked
def shuffled(
    channels: int, partitions: Sequence[int], out_channels: int | None = None, widen_at: int | None = None
) -> ChainSpec:
    """Return a chain of group convolutions with the stride shuffle in between (the loose chain of IGCV2).

    Every K of ``partitions`` must divide the channels that enter its factor; their product need not equal them. Between
    two factors the channels are reordered so that neighbours come from different blocks: Reorder(C / K) of the factor
    before. GroupConvSpec ``widen_at`` (the second by default, the first of a single one) goes to ``out_channels``.

    Examples:
        >>> shuffled(16, (4, 4)).in_channels
        16
    """
    sizes = check_partitions(partitions)
    wide = channels if out_channels is None else int(out_channels)
    position_of_change = min(1, len(sizes) - 1) if widen_at is None else widen_at
    if not 0 <= position_of_change < len(sizes):
        raise InvalidArgument("widen_at names one of the factors", given=widen_at, argument=f"0 to {len(sizes) - 1}")
    factors: list[GroupConvSpec] = []
    now = channels
    for position, members in enumerate(sizes):
        check_divides(members, now, f"factor {position + 1} of the partitions")
        order = None
        if factors and 1 < factors[-1].members_out < now:
            order = shuffle(now, factors[-1].groups)
        after = wide if position == position_of_change else now
        check_divides(now // members, after, f"the groups of factor {position + 1} (into {after} channels)")
        factors.append(GroupConvSpec(now, after, now // members, order))
        now = after
    return ChainSpec(tuple(factors))


@checked
def path_counts(spec: ChainSpec) -> Tensor:
    """Return the number of paths from every input to every output channel, [out, in] int64.

    Examples:
        >>> path_counts(interleaved(2, 2)).unique().tolist()
        [1]
    """
    counts = torch.eye(spec.in_channels, dtype=torch.int64)
    for factor in spec.factors:
        if factor.order is not None:
            counts = counts[factor.order.index()]
        blocks = counts.view(factor.groups, factor.members_in, -1).sum(1, keepdim=True)
        counts = blocks.expand(-1, factor.members_out, -1).reshape(factor.out_channels, -1)
    return counts if spec.final_order is None else counts[spec.final_order.index()]


def check_partitions(partitions: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes as a tuple of positive integers, or raise."""
    plain = isinstance(partitions, Sequence) and not isinstance(partitions, str)
    if not plain or not partitions or any(not isinstance(k, int) or k < 1 for k in partitions):
        rule = "a chain has at least one factor and every partition at least one member"
        raise InvalidArgument(rule, argument="partitions", given=spelled(partitions))
    return tuple(map(int, partitions))


def check_divides(divisor: int, number: int, what: str) -> None:
    """Raise an `InvalidArgument` that names both numbers and the nearest divisors unless ``divisor | number``."""
    if divisor >= 1 and number >= 1 and number % divisor == 0:
        return
    integer(f"the channels that {what} divide", number, least=1)
    raise InvalidArgument(
        f"{what} must divide the channels",
        argument=f"{divisor} to divide {number}",
        given=f"{number} / {divisor} leaves {number % divisor}" if divisor >= 1 else divisor,
        hint="nearest valid: " + " or ".join(str(k) for k in nearest_divisors(number, divisor)),
    )


def nearest_divisors(number: int, wanted: int) -> tuple[int, ...]:
    """Return the divisors of ``number`` next below and next above ``wanted``."""
    below = [k for k in divisors(number) if k < wanted]
    above = [k for k in divisors(number) if k > wanted]
    return tuple(below[-1:] + above[:1])


def divisors(number: int) -> list[int]:
    """Return the divisors of ``number``, ascending."""
    small = [k for k in range(1, math.isqrt(number) + 1) if number % k == 0]
    return sorted({*small, *(number // k for k in small)})
