"""The two conditions of IGCV2 and their consequences: is a chain dense with one path per pair, and what balances it.

Xie et al., IGCV2: Interleaved Structured Sparse Convolutional Neural Networks, arXiv 1804.06202.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from convsmith.arguments import checked, integer, spelled, tensor
from convsmith.compression.operators.chain_spec import ChainSpec, check_partitions, divisors, mixed_radix, path_counts
from convsmith.errors import InvalidArgument, refusing

#: beyond these, listing divisors takes minutes; no network is near them
MOST_CHANNELS, MOST_LAYERS = 2**20, 64


@dataclass(frozen=True)
class Condition:
    """Whether a chain is complementary and why.

    ``strict``: exactly one path for every (input, output) pair; ``loose``: at least one, the same number for all;
    ``fewest``, ``most``: paths over all pairs; ``density``: share of pairs with a path; ``reason``: one sentence.
    """

    strict: bool
    loose: bool
    fewest: int
    most: int
    density: float
    reason: str


def condition(partitions: Any) -> Condition:
    """Judge a chain by its number of paths between every input and output channel.

    Args:
        partitions: one of

            - sizes (K_1, ..., K_n) of a mixed-radix chain;
            - for every layer, a list of groups, each a list of channels: ``[[[0, 1], [2, 3]], [[0, 2], [1, 3]]]``;
            - for every layer, the group number of every channel: ``[[0, 0, 1, 1], [0, 1, 0, 1]]``;
            - a `ChainSpec`, or a module that has one as ``spec``.

    Examples:
        >>> condition((16, 16)).strict
        True
    """
    counts = counts_of(partitions)
    fewest, most = int(counts.min()), int(counts.max())
    density = float((counts > 0).double().mean())
    strict, loose = fewest == most == 1, fewest == most >= 1
    return Condition(strict, loose, fewest, most, density, _reason(counts, fewest, most))


@checked
def is_complementary(partitions: Any, *, strict: bool = True) -> bool:
    """Tell whether the chain connects every input with every output by exactly one path (``strict``).

    With ``strict=False`` any positive number of paths will do, as long as it is the same for all pairs (IGCV3's loose
    condition). ``partitions`` as in `condition`, which also says why.

    Examples:
        >>> is_complementary((16, 16)), is_complementary(interleaved(4, 8))
        (True, True)
    """
    judged = condition(partitions)
    return judged.strict if strict else judged.loose


def counts_of(partitions: Any) -> Tensor:
    """Return path counts [out, in] of anything `condition` accepts."""
    spec = getattr(partitions, "spec", partitions)
    if isinstance(spec, ChainSpec):
        return path_counts(spec)
    if isinstance(spec, Tensor):
        spec = tensor("partitions", spec, rank=(1, 2), floating=False).tolist()
    if not isinstance(spec, Sequence) or isinstance(spec, str) or not spec:
        raise InvalidArgument("a chain is a sequence of at least one layer", argument="partitions", given=spelled(spec))
    layers = list(spec)
    if all(isinstance(layer, int) for layer in layers):
        return path_counts(mixed_radix(layers))
    rule = "a layer is a list of groups of channels, or of the group number of every channel"
    with refusing(rule, TypeError, ValueError, argument="partitions"):
        labels = [_labels(layer, number) for number, layer in enumerate(layers, 1)]
    if not len(labels[0]):
        raise InvalidArgument(rule, argument="partitions", given=spelled(spec))
    if len({len(label) for label in labels}) != 1:
        raise InvalidArgument(
            "all layers partition the same channels", given=f"layers over {[len(label) for label in labels]} channels"
        )
    counts = torch.eye(len(labels[0]), dtype=torch.int64)
    for label in labels:
        counts = (label[:, None] == label[None, :]).long() @ counts
    return counts


def _labels(layer: Sequence[Any], number: int) -> Tensor:
    """Return the group number of every channel of one layer."""
    if isinstance(layer, Tensor):
        layer = layer.tolist()
    if all(isinstance(entry, int) for entry in layer):
        return torch.tensor(list(layer), dtype=torch.int64)
    members = sorted(int(channel) for group in layer for channel in group)
    if members != list(range(len(members))):
        missing = sorted(set(range(len(members))) - set(members))
        raise InvalidArgument(
            f"the groups of layer {number} hold every channel once",
            given=[list(group) for group in layer],
            hint=f"channels missing or twice: {missing or sorted(c for c in set(members) if members.count(c) > 1)}",
        )
    label = torch.empty(len(members), dtype=torch.int64)
    for group, channels in enumerate(layer):
        label[torch.tensor(list(channels), dtype=torch.int64)] = group
    return label


def _reason(counts: Tensor, fewest: int, most: int) -> str:
    out, in_channels = counts.shape
    if fewest == most == 1:
        return f"every one of the {in_channels} inputs reaches every one of the {out} outputs by exactly one path"
    if fewest == most:
        return f"every input reaches every output by {most} paths: dense, but weights are spent {most} times on a pair"
    if fewest == 0:
        output, start = divmod(int((counts == 0).reshape(-1).long().argmax()), in_channels)
        reached = int((counts[output] > 0).sum())
        return (
            f"input channel {start} never reaches output channel {output}: that output sees {reached} of "
            f"{in_channels} inputs"
            " (two factors mix the same channels, or the sizes multiply to less than the channels)"
        )
    return f"the number of paths differs between pairs, from {fewest} to {most}"


@checked
def balanced_partition(channels: int, layers: int, *, area: int = 1) -> tuple[int, ...]:
    """Return the integer factorisation of ``channels`` into ``layers`` sizes with the fewest weights.

    Minimises ``area * K_1 + K_2 + ... + K_n`` subject to ``K_1 ... K_n = channels``; over the reals the minimum has
    ``area * K_1 = K_2 = ... = K_n = (area * channels)^(1/n)`` (IGCV2, balance condition). ``area`` is the number of
    taps of the first factor (9 for a 3x3); with ``area=1`` all factors are 1x1. Equal factors ascend.

    Raises:
        InvalidArgument: channels outside 1 to 2**20, layers outside 1 to 64, an area below 1.

    Examples:
        >>> balanced_partition(256, 2)
        (16, 16)
    """
    integer("channels", channels, least=1, most=MOST_CHANNELS)
    integer("layers", layers, least=1, most=MOST_LAYERS)
    integer("area", area, least=1)
    if area == 1:
        return _lightest(channels, layers)[1]
    rests = {first: _lightest(channels // first, layers - 1) for first in divisors(channels)}
    return min((area * first + total, (first, *rest)) for first, (total, rest) in rests.items())[1]


def shortest_partition(channels: int) -> tuple[int, ...]:
    """Return the lightest factorisation of ``channels`` over any number of 1x1 factors, the shortest one of equals.

    Examples:
        >>> shortest_partition(27)
        (3, 3, 3)
    """
    (channels,) = check_partitions([channels])
    candidates = (balanced_partition(channels, layers) for layers in range(1, max(2, channels.bit_length() + 1)))
    return min(candidates, key=lambda sizes: (sum(sizes), len(sizes)))


@checked
def balanced_cost(channels: int, layers: int, area: int = 1) -> float:
    """Return ``n C (S C)^(1/n)``: the weights of a perfectly balanced chain over the reals (IGCV2, eq. of balance).

    Examples:
        >>> balanced_cost(256, 2)
        8192.0
    """
    for name, value in (("channels", channels), ("layers", layers), ("area", area)):
        integer(name, value, least=1)
    return layers * channels * math.pow(area * channels, 1.0 / layers)


@functools.cache
def _lightest(channels: int, layers: int) -> tuple[float, tuple[int, ...]]:
    """Return the least sum of ``layers`` factors of ``channels``, and the factors."""
    if layers == 0:
        return (0 if channels == 1 else math.inf), ()
    if layers == 1:
        return channels, (channels,)
    options = []
    for first in divisors(channels):
        if first**layers > channels:
            break
        total, rest = _lightest(channels // first, layers - 1)
        options.append((first + total, tuple(sorted((first, *rest)))))
    # of equal sums the most even one: fewer kinds of blocks
    return min(options, key=lambda option: (option[0], max(option[1]), option[1]))
