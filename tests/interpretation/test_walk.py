"""The walk from open gates to a few: lowest point with the prediction, row by row, and closed gates stay closed."""

from itertools import pairwise

import pytest
import torch

from convsmith.interpretation import find_routes
from convsmith.interpretation.solvers.problem import Evaluation
from convsmith.interpretation.solvers.walk import BEGIN, STRIDE, walk


def bowl(needed, seen=None):
    """Gates up to ``needed`` [C] matter, each alike; the prediction holds while all of these are above a half."""

    def look(gates):
        if seen is not None:
            seen.append(gates.clone())
        off = (gates - 1) * needed
        return Evaluation((gates[:, needed > 0] > 0.5).all(1), 5 * (off**2).sum(1), 5 * (off**2).sum(1), 10 * off)

    return look


def test_gates_that_carry_nothing_close_and_the_others_stay():
    needed = torch.zeros(40).double()
    needed[[3, 17, 29]] = 1
    found = walk(bowl(needed), torch.ones(2, 40).double(), torch.tensor([0.05, 0.2]).double(), 5.0, 60)
    assert ((found > 0) == (needed > 0)).all()


def test_the_point_returned_is_the_lowest_of_all_that_kept_the_prediction():
    needed, seen = (torch.arange(30) < 4).double(), []
    gamma = torch.tensor([0.05, 0.3]).double()
    found = walk(bowl(needed, seen), torch.ones(2, 30).double(), gamma, 5.0, 45)
    assert len(seen) == 45
    here = [bowl(needed)(gates) for gates in seen]
    objective = torch.stack([h.cross_entropy + gamma * g.sum(1) for h, g in zip(here, seen, strict=True)])
    objective = torch.where(torch.stack([h.kept for h in here]), objective, torch.inf)
    for row, number in enumerate(objective.argmin(0).tolist()):
        assert torch.equal(found[row], seen[number][row])
    more = walk(bowl(needed), torch.ones(2, 30).double(), gamma, 5.0, 60)
    final = bowl(needed)(more).cross_entropy + gamma * more.sum(1)
    assert (final <= objective.amin(0)).all()


def test_a_pass_closes_a_tenth_at_first_and_moves_no_gate_further_than_three_strides():
    seen = []
    walk(bowl((torch.arange(50) < 5).double(), seen), torch.ones(1, 50).double(), torch.full((1,), 0.05).double(), 5, 9)
    # before: every gate shrinks alike; a sixth factor of 1.1 makes the tenth a sixth
    assert [int((gates > 0).sum()) for gates in seen] == [50] * (BEGIN + 1) + [50 - 10, 40 - 8]
    for before, after in pairwise(seen):
        assert ((before - after).abs()[after > 0] <= 3 * STRIDE + 1e-12).all()


def test_rows_do_not_notice_each_other():
    needed = (torch.arange(30) % 7 == 0).double()
    gamma = torch.tensor([0.02, 0.05, 0.3]).double()
    together = walk(bowl(needed), torch.ones(3, 30).double(), gamma, 5.0, 50)
    for row in range(3):
        alone = walk(bowl(needed), torch.ones(1, 30).double(), gamma[row : row + 1], 5.0, 50)
        assert torch.equal(alone[0], together[row])


def test_without_the_prediction_the_start_comes_back():
    def lost(gates):
        return Evaluation(torch.zeros(1, dtype=torch.bool), gates.sum(1), gates.sum(1), torch.ones_like(gates))

    start = torch.rand(1, 12, generator=torch.Generator().manual_seed(0))
    assert torch.equal(walk(lost, start, torch.full((1,), 0.05), 5.0, 40), start)


@pytest.mark.parametrize("steps", [1, 2, 30])
def test_few_passes_are_all_the_search_takes_and_it_says_that_it_is_not_at_rest(digits, steps):
    routes = find_routes(digits.model, digits.test_x[:3], open_layers=True, steps=steps)
    assert routes.passes.tolist() == [2 * steps] * 3
    assert routes.kept.all()
    if steps < 3:
        assert not routes.converged.any()
        assert "not converged" in routes.messages(0)[0]


def test_more_passes_never_end_higher(digits):
    model, x = digits.model.double(), digits.test_x[:6].double()
    # walks of the same length, so that one search is the beginning of the other
    short, long = (find_routes(model, x, open_layers=True, steps=steps) for steps in (95, 140))
    assert (long.objective <= short.objective + 1e-9).all()
    assert (long.sparsity() < 1).all()
    assert long.flags.open.all()
