"""The compact quasi-Newton product against the dense update, pair by pair, and what leaves the model."""

import pytest
import torch

from convsmith.interpretation.solvers.quasi_newton import inverse_times


def naive(steps, changes, slope, pinned, first):
    """Nocedal and Wright (6.17): H <- (I - r s y^T) H (I - r y s^T) + r s s^T, r = 1 / s^T y but for those pinned."""
    free = ~pinned
    pairs = [(s * free, y * free) for s, y in zip(steps, changes, strict=True)]
    pairs = [(s, y) for s, y in pairs if s @ y > 1e-8 * s.norm() * y.norm()]
    identity = torch.eye(len(slope), dtype=slope.dtype)
    if not pairs:
        return slope * first / slope.abs().max()
    s, y = pairs[-1]
    inverse = identity * (s @ y) / (y @ y)
    for s, y in pairs:
        left = identity - torch.outer(s, y) / (s @ y)
        inverse = left @ inverse @ left.T + torch.outer(s, s) / (s @ y)
    return inverse @ slope


@pytest.fixture
def rows():
    """Four rows of nine entries with five pairs each; pairs of the third row bend the wrong way, the last has none."""
    draw = torch.Generator().manual_seed(0)
    steps = torch.randn(4, 5, 9, generator=draw, dtype=torch.float64)
    bend = torch.randn(4, 9, 9, generator=draw, dtype=torch.float64)
    changes = steps @ (bend @ bend.mT)
    changes[2, [1, 4]] *= -1
    steps[3], changes[3] = 0, 0
    slope = torch.randn(4, 9, generator=draw, dtype=torch.float64)
    pinned = torch.rand(4, 9, generator=draw) < 0.3
    pinned[0] = False
    return steps, changes, slope.masked_fill(pinned, 0.0), pinned, torch.tensor([0.1, 0.1, 0.5, 0.7]).double()


def test_every_row_equals_the_dense_update(rows):
    found = inverse_times(*rows)
    for row, values in enumerate(zip(*rows, strict=True)):
        torch.testing.assert_close(found[row], naive(*values), atol=1e-11, rtol=1e-9)


def test_pinned_entries_do_not_move_and_nothing_depends_on_their_past(rows):
    steps, changes, slope, pinned, first = rows
    found = inverse_times(*rows)
    assert (found[pinned] == 0).all()
    noise = torch.randn(4, 5, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    other = inverse_times(steps + noise * pinned[:, None], changes - noise * pinned[:, None], slope, pinned, first)
    assert torch.equal(other, found)


def test_without_a_pair_the_longest_move_is_the_one_asked_for(rows):
    found = inverse_times(*rows)
    torch.testing.assert_close(found[3].abs().max(), rows[4][3])
    assert (found * rows[2]).sum(1).gt(0).all()
