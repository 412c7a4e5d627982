"""From open gates to a few that carry the prediction: slopes of every gate's own size, and gates closed as it goes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from convsmith.interpretation.solvers.problem import Evaluation

#: passes at most; how far a gate moves in each; decay of the averages of its slope and squared slope
MOST, STRIDE, MEMORY = 60, 0.1, (0.9, 0.99)
#: weight of the cross-entropy at first, its factor after a pass without the prediction and with it, its ends
HEAVY, RAISE, FALL, WEIGHTS = 2.0, 1.2, 1 / 1.1, (1.0, 50.0)
#: share of the open gates that a pass closes at first, its growth, its largest value
CUT, MORE, LARGEST = 0.1, 1.1, 0.2
#: passes before gates are closed, and before a row goes back; passes without the prediction that it bears
BEGIN, SETTLED, LOST = 6, 20, 8


def walk(look: Callable[[Tensor], Evaluation], start: Tensor, gamma: Tensor, upper: float, passes: int) -> Tensor:
    """Return for every row the lowest point [B, total] with the prediction that ``passes`` from ``start`` find.

    ``look`` evaluates gates [B, total]; ``gamma`` [B]. Every gate moves by about 0.1 a pass down its own slope (Adam,
    Kingma and Ba 2015, without a rate), the cross-entropy weighing twice at first, more while the prediction is lost
    and less, down to once, while it holds. A row that has it closes a tenth to a fifth of its open gates, those that
    carry least: gate times the geometric mean of the slope's size now and in the average. Closed gates stay closed
    here. Where 8 passes in a row lose the prediction, the row goes back to its lowest point and closes half as many.
    """
    gates, weight, cut = start, torch.full_like(gamma, HEAVY), torch.full_like(gamma, CUT)
    mean = square = torch.zeros_like(start)
    shut, lost = torch.zeros_like(start, dtype=torch.bool), torch.zeros_like(gamma)
    best: tuple[Tensor, ...] = (gates, mean, square, shut)
    lowest = torch.full_like(gamma, torch.inf)
    for taken in range(1, passes + 1):
        here = look(gates)
        asked = here.cross_entropy + gamma * gates.sum(1)
        slope = weight[:, None] * here.gradient + gamma[:, None]
        mean = MEMORY[0] * mean + (1 - MEMORY[0]) * slope
        square = MEMORY[1] * square + (1 - MEMORY[1]) * slope**2
        better = here.kept & (asked < lowest)
        lowest = torch.where(better, asked, lowest)
        best = _choose(better, (gates, mean, square, shut), best)
        lost = torch.where(here.kept, 0, lost + 1)
        back = (lost >= LOST) & (taken > SETTLED)
        lost = lost.masked_fill(back, 0)
        cut = torch.where(back, cut / 2, torch.where(here.kept, (cut * MORE).clamp(max=LARGEST), cut))
        weight = (weight * torch.where(here.kept, FALL, RAISE)).clamp(*WEIGHTS)
        gates, mean, square, shut = _choose(back, best, (gates, mean, square, shut))

        size = (square / (1 - MEMORY[1] ** taken)).sqrt().clamp(min=torch.finfo(gates.dtype).tiny)
        carries = torch.where(gates > 0, gates * (here.gradient.abs() * size).sqrt(), torch.inf)
        count = (cut * (gates > 0).sum(1)).ceil() * ((here.kept | back) & (taken > BEGIN))
        shut = shut | (carries.argsort(dim=1, stable=True).argsort(dim=1) < count[:, None])
        step = (mean / (1 - MEMORY[0] ** taken) / size).clamp(-3, 3)
        gates = (gates - STRIDE * step).clamp(0, upper).masked_fill(shut, 0.0)
    return best[0]


def _choose(rows: Tensor, these: tuple[Tensor, ...], others: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.where(rows[:, None], a, b) for a, b in zip(these, others, strict=True))
