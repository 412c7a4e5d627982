"""Rounding for what a layer is shown: against the elimination it stands for, and against the nearest codes."""

import pytest
import torch
from torch import nn

from convsmith.compression import compress
from convsmith.compression.methods.int8 import converted, prepare
from convsmith.compression.methods.rounding import RIDGE, round_to_grid
from convsmith.compression.planning.moments import Moments

GENERATOR = torch.Generator().manual_seed(0)


def moments(samples=400, groups=2, outputs=3, width=6):
    mix = torch.randn(groups, width, width, generator=GENERATOR, dtype=torch.float64)
    x = torch.einsum("ngd,gde->nge", torch.randn(samples, groups, width, generator=GENERATOR).double(), mix)
    return Moments.of(x, torch.zeros(samples, groups, outputs).double(), centred=False)


def by_elimination(weight, hessian, step):
    """Fix one column after the other; the free ones take the least-squares optimum of what is left (float64)."""
    left, codes = weight.clone(), torch.zeros_like(weight)
    for j in range(weight.shape[-1]):
        codes[:, j] = (left[:, j] / step).round().clamp(-127, 127)
        moved = codes[:, j] * step - left[:, j]
        rest = slice(j + 1, None)
        # minimise (moved, d) H (moved, d)^T over d
        left[:, rest] -= moved[:, None] * torch.linalg.solve(hessian[rest, rest], hessian[rest, j])
    return codes


def test_the_codes_are_those_of_elimination():
    known = moments()
    weight = torch.randn(2, 3, 6, generator=GENERATOR, dtype=torch.float64)
    step = weight.abs().amax(-1) / 7
    found = round_to_grid(weight, known, step, -127, 127)
    for g in range(2):
        assert torch.equal(found[g], by_elimination(weight[g], known.damped(RIDGE)[g], step[g]))


def test_codes_lie_within_what_the_columns_before_them_may_move_a_weight():
    """A rounding errs by half a step at most and moves column k by U_jk / U_jj of that: |q_k - w_k| is bounded."""
    known = moments(groups=3, outputs=16, width=12)
    weight = torch.randn(3, 16, 12, generator=GENERATOR, dtype=torch.float64)
    step = weight.abs().amax(-1) / 100  # no code reaches the ends
    upper = torch.linalg.cholesky(torch.linalg.inv(known.damped(RIDGE)), upper=True)
    shares = (upper / upper.diagonal(dim1=-2, dim2=-1)[..., None]).abs()
    bound = shares.triu().sum(-2) / 2  # steps, by column: its own half, and its share of those before it
    off = (round_to_grid(weight, known, step, -(2**15), 2**15) - weight / step[..., None]).abs()
    assert bool((off <= bound[:, None] + 1e-9).all())
    assert float(off.max()) > 0.5, "later columns make good what earlier ones cost"


def test_outputs_move_less_than_with_the_nearest_codes():
    known = moments(groups=4, outputs=16)
    weight = torch.randn(4, 16, 6, generator=GENERATOR, dtype=torch.float64)
    step = weight.abs().amax(-1) / 7

    def moved(codes):
        error = codes * step[..., None] - weight
        return float(torch.einsum("god,gde,goe->", error, known.inputs, error))

    assert moved(round_to_grid(weight, known, step, -127, 127)) < 0.8 * moved((weight / step[..., None]).round())


def test_too_few_samples_give_the_nearest_codes():
    weight, step = torch.randn(2, 3, 6, dtype=torch.float64), torch.full((2, 3), 0.1, dtype=torch.float64)
    found = round_to_grid(weight, moments(samples=20), step, -127, 127)
    assert torch.equal(found, (weight / 0.1).round())


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, stride=2, padding=1, groups=16, bias=False)
        self.norm2 = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = torch.relu(self.norm2(self.depthwise(torch.relu(self.norm(self.first(x))))))
        return self.head(x.mean((2, 3)))


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    made, images = Net(), torch.randn(64, 3, 12, 12).cumsum(-1) / 4
    with torch.no_grad():
        made.depthwise.weight[:, :, 0, 0] *= 20  # one weight sets a wide step for the others
        made(images)
    return made.eval(), images


def test_a_network_answers_nearer_to_the_original(network):
    model, images = network
    nearest, _ = converted(prepare_and_show(model, images))
    chosen = compress(model, "int8", example=images)
    with torch.no_grad():
        wanted = model(images)
        assert (chosen(images) - wanted).norm() < 0.8 * (nearest(images) - wanted).norm()


def prepare_and_show(model, images):
    prepared = prepare(model, images, training=False)
    with torch.no_grad():
        prepared.program(images)
    return prepared


def test_a_layer_stays_in_float_by_name(network):
    model, images = network
    made = compress(model, "int8", example=images, skip=("first",))
    codes = [tuple(b.shape) for b in made.buffers() if b.dtype == torch.int8]
    assert (5, 16) in codes
    assert (16, 3, 3, 3) not in codes
    assert any(p.shape == (16, 3, 3, 3) for p in made.parameters())
