"""What an activation cuts off is found whatever computes it, and solving for what is left never errs more."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from convsmith.compression.planning.clipping import asked, clipped
from convsmith.compression.planning.moments import Moments, reduced_rank


class Mixed(nn.Module):
    """One layer for every case; ``negative`` has a normalisation that turns its outputs round."""

    def __init__(self):
        super().__init__()
        self.relu6 = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.function = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.smooth = nn.Conv2d(6, 6, 1)
        self.negative = nn.Conv2d(6, 6, 1, bias=False)
        self.turned = nn.BatchNorm2d(6)
        self.both = nn.Conv2d(6, 6, 1)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = nn.functional.relu6(self.norm(self.relu6(x)))
        x = torch.relu(self.function(x))
        x = nn.functional.silu(self.smooth(x))
        x = nn.functional.relu6(self.turned(self.negative(x)))
        x = self.both(x)
        x = torch.relu(x) + 0.1 * x  # what is cut off is read beside
        return self.head(x.mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = Mixed()
    with torch.no_grad():
        for norm, sign in ((made.norm, 1), (made.turned, -1)):
            norm.weight.uniform_(0.5, 2).mul_(sign)
            norm.bias.uniform_(-1, 1)
            norm.running_mean.uniform_(-1, 1)
            norm.running_var.uniform_(0.5, 2)
    return made.eval()


def test_what_is_cut_off_is_tried_out(model):
    names = ["relu6", "function", "smooth", "negative", "both", "head"]
    norms = {"relu6": "norm", "negative": "turned"}
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = clipped(model, names, norms, torch.randn(2, 3, 8, 8))
    assert set(found) == {"relu6", "function", "negative"}
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
    low, high = found["function"]
    assert torch.equal(low, torch.zeros(6))
    assert high.tolist() == [math.inf] * 6
    for name in ("relu6", "negative"):
        norm = model.get_submodule(norms[name])
        ends = torch.stack(found[name]).view(2, 6, 1, 1)
        reached = norm(ends).flatten(1).detach().sort(0).values
        torch.testing.assert_close(reached, torch.tensor([[0.0], [6.0]]).expand(2, 6), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", [1, 3])
def test_solving_for_what_is_left_never_errs_more(rank):
    torch.manual_seed(rank)
    x = torch.randn(400, 1, 8, dtype=torch.float64)
    weight = torch.randn(1, 12, 8, dtype=torch.float64)
    wanted = torch.einsum("ngd,god->ngo", x, weight)[:, 0]
    bounds = torch.full((12,), -0.5, dtype=torch.float64), torch.full((12,), 2.0, dtype=torch.float64)

    errors, goal = [], wanted
    for _ in range(8):
        moments = Moments.of(x, goal[:, None], centred=False)
        best = torch.linalg.solve(moments.inputs, moments.cross.mT).mT
        first, second = reduced_rank(best, moments, rank)
        given = torch.einsum("ngd,god->ngo", x, second @ first)[:, 0]
        short = torch.where(wanted <= bounds[0], (given - bounds[0]).clamp_min(0), wanted - given)
        short = torch.where(wanted >= bounds[1], (bounds[1] - given).clamp_min(0), short)
        errors.append(float(short.square().sum()))
        goal = asked(wanted, given, bounds)
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in pairwise(errors))
    assert errors[-1] < 0.9 * errors[0]
