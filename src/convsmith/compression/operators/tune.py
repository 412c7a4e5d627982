"""Measure the backends of every chain of a network where a person asks for it, and write the fastest into a copy."""

from __future__ import annotations

import statistics
from functools import partial
from typing import Any

from torch import Tensor, nn

from convsmith.arguments import checked, integer
from convsmith.compression.operators.backends import BACKENDS
from convsmith.compression.operators.interleaved import LinearChain
from convsmith.compression.planning.latency import time_side_by_side
from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import copied, unwrap, watching


@checked
def tune(model: nn.Module, example: Tensor, *, rounds: int = 9) -> nn.Module:
    """Return a copy of ``model`` in which every linear chain has the backend that was fastest on its own input.

    The copy runs once on ``example`` in evaluation mode without gradients; every chain then runs ``rounds`` times by
    every backend in turn on what came to it, after three turns that do not count, and takes the smallest median. The
    choice holds for this machine, this number of threads and inputs like ``example``; training and export are better
    served by ``backend="auto"``. The training mode is that of ``model``.

    Args:
        model: any network with `LinearChain` layers.
        example: images [B, C, H, W] as the network will see them: their batch size, size and layout.
        rounds: counted turns, 1 or more.

    Raises:
        InvalidArgument: if no chain ran, or ``rounds`` is below 1.

    Examples:
        >>> tuned = tune(compress(model, "interleave", example=images), images, rounds=1)
    """
    integer("rounds", rounds, least=1)
    model = unwrap(model)
    tuned = copied(model).eval()
    inputs: dict[LinearChain, Tensor] = {}

    def note(chain: Any, arguments: tuple[Any, ...]) -> None:
        inputs.setdefault(chain, arguments[0].clone())

    chains = [name for name, module in tuned.named_modules() if isinstance(module, LinearChain)]
    with watching(tuned, dict.fromkeys(chains, note), before=True):
        tuned(example)
        if not inputs:
            raise InvalidArgument("no interleaved chain ran on the example", given=type(model).__name__)
        for chain, x in inputs.items():
            took = time_side_by_side(
                [partial(run, chain=chain) for run in BACKENDS.values()], x, seconds=0, least=rounds
            )
            medians = [statistics.median(row) for row in took]
            chain.backend = list(BACKENDS)[medians.index(min(medians))]
    for new, own in zip(tuned.modules(), model.modules(), strict=True):
        new.training = own.training
    return tuned
