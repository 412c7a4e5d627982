"""Teaching by the original: nearer to it on new images, repeatable, and never further away."""

import copy

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from convsmith.compression import compress, compression_history
from convsmith.compression.planning import teach as room
from convsmith.compression.planning.teach import teach
from convsmith.inspection.trace import trace_layers

DIGITS = torch.tensor(load_digits().images[:1200, None] / 16, dtype=torch.float32)
LABELS = torch.tensor(load_digits().target[:1200])
LEARNT, FIT, HELD, NEW = DIGITS[:800], DIGITS[800:900], DIGITS[900:950], DIGITS[950:]


class Blocks(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 24, 3, padding=1)
        self.stages = nn.Sequential(*(self.block() for _ in range(2)))
        self.head = nn.Linear(24, 10)

    @staticmethod
    def block():
        layers = [nn.Conv2d(24, 24, 3, padding=1, bias=False), nn.BatchNorm2d(24), nn.ReLU(), nn.Conv2d(24, 24, 1)]
        return nn.Sequential(*layers)

    def forward(self, x):
        return self.head(F.relu(self.stages(F.relu(self.stem(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    model = Blocks()
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(120):
        chosen = torch.randint(len(LEARNT), (64,), generator=torch.Generator().manual_seed(step))
        optimiser.zero_grad()
        F.cross_entropy(model(LEARNT[chosen]), LABELS[chosen]).backward()
        optimiser.step()
    model.zero_grad()
    return model.eval()


def smaller(model, method="low-rank", keep=0.35):
    return compress(model, method, example=FIT, keep_macs=keep, reconstruct=False)


def taught(model, made, **changes):
    made = copy.deepcopy(made)
    return made, teach(model, made, trace_layers(model, FIT[:2]), FIT, HELD, **{"macs": 1, **changes})


def error(model, other):
    with torch.no_grad():
        return float((other(NEW) - model(NEW)).square().sum() / (model(NEW) - model(NEW).mean(0)).square().sum())


@pytest.mark.parametrize("method", ["low-rank", "prune-filters", "interleave"])
def test_less_is_lost_on_new_images_and_twice_the_same(trained, method):
    before, made = copy.deepcopy(trained.state_dict()), smaller(trained, method)
    better, steps = taught(trained, made)
    assert steps == room.STEPS
    assert error(trained, better) < error(trained, made)
    again, _ = taught(trained, made)
    assert all(torch.equal(a, b) for a, b in zip(better.parameters(), again.parameters(), strict=True))
    assert all(torch.equal(value, trained.state_dict()[name]) for name, value in before.items())
    assert all(p.grad is None for p in [*trained.parameters(), *better.parameters()])
    for name, value in made.named_buffers():
        assert torch.equal(value, better.get_buffer(name))
    assert better.training == made.training


def test_what_is_frozen_stays_and_a_network_too_large_is_left(trained):
    made = smaller(trained)
    made.stages[0].requires_grad_(False)
    better, steps = taught(trained, made)
    assert steps > 0
    assert all(
        torch.equal(a, b) for a, b in zip(made.stages[0].parameters(), better.stages[0].parameters(), strict=True)
    )
    changed = [n for n, p in made.named_parameters() if not torch.equal(p, better.get_parameter(n))]
    assert changed
    assert all(made.get_parameter(name).dim() == 1 for name in changed)
    assert taught(trained, made, macs=10**12)[1] == 0
    assert taught(trained, made, macs=int(room.MACS / (3 * room.BATCH * 7)))[1] == 7
    assert taught(trained, made.requires_grad_(False))[1] == 0


def test_what_does_not_come_nearer_is_not_kept(trained, monkeypatch):
    monkeypatch.setattr(room, "RATE", 10.0)
    made = smaller(trained)
    worse, steps = taught(trained, made)
    assert steps == 0
    assert all(torch.equal(a, b) for a, b in zip(made.state_dict().values(), worse.state_dict().values(), strict=True))


def test_blocks_are_counted_once(trained):
    names = room._blocks(trained, trace_layers(trained, FIT[:2]))
    assert names == ["stages", "stages.0", "stages.1"]
    _, outputs = room.outputs(trained, names, FIT[:2])
    assert set(outputs) == {"stages.0", "stages.1"}  # `stages` gives what its last block does


def test_crops_show_each_image_in_its_size():
    wide = torch.arange(3.0)[:, None, None, None].expand(3, 2, 6, 10)
    crops = room._crops(wide, 5)
    assert crops.shape == (room.BATCH, 2, 6, 10)
    assert set(crops.unique().tolist()) <= {0.0, 1.0, 2.0}
    assert torch.equal(crops, room._crops(wide, 5))


def test_compress_teaches_and_says_so(trained):
    made = compress(trained, "low-rank", example=FIT, keep_macs=0.35)
    (entry,) = compression_history(made)
    assert entry["taught"] in (0, room.STEPS)
    assert error(trained, made) < error(trained, smaller(trained))
