"""Finetune: accuracy comes back, zeros stay, nothing else changes."""

import copy

import pytest
import torch
from torch import nn

from convsmith.compression import Int8Model, compress, compression_history
from convsmith.compression.planning.finetune import FinetuneTask, finetune, reestimate_batchnorm
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.training import TrainConfig


def batches(count=6, size=32):
    """Five separable classes: a bright square at one of five places."""
    generator = torch.Generator().manual_seed(4)
    out = []
    for _ in range(count):
        labels = torch.randint(0, 5, (size,), generator=generator)
        images = 0.5 * torch.randn(size, 1, 8, 8, generator=generator)
        for i, label in enumerate(labels):
            row, column = divmod(int(label), 3)
            images[i, 0, 4 * row : 4 * row + 3, 3 * column : 3 * column + 2] += 2
        out.append(Batch(images, labels, torch.arange(size)))
    return out


DATA = batches()
CONFIG = TrainConfig(steps=12, lr=0.02, device="cpu")


def accuracy(model):
    model.eval()
    with torch.no_grad():
        return float(torch.cat([model(b.images).argmax(1) == b.labels for b in DATA]).float().mean())


@pytest.fixture(scope="module")
def original(Plain):
    from convsmith.training import ClassificationTask, fit

    torch.manual_seed(0)
    model = Plain()
    fit(ClassificationTask(model, 5), DATA, TrainConfig(steps=150, lr=0.1, device="cpu"))
    model.eval()
    assert accuracy(model) > 0.9
    return model


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        ("prune-filters", {"keep": 0.5}),
        ("low-rank", {"keep_macs": 0.3}),
        ("ternary", {}),
        ("sparse", {"sparsity": 0.8}),
        ("structured-sparse", {"pattern": "1:4"}),
    ],
)
def test_accuracy_comes_back(original, method, settings):
    made = compress(original, method, example=DATA[0].images, **settings)
    before = {name: value.clone() for name, value in made.state_dict().items()}
    fixed = finetune(made, original, DATA, num_classes=5, config=TrainConfig(steps=60, lr=0.02, device="cpu"))
    assert accuracy(fixed) >= max(accuracy(made), accuracy(original) - 0.05)
    assert all(torch.equal(value, before[name]) for name, value in made.state_dict().items())
    assert compression_history(fixed) == compression_history(made)
    assert not fixed.training
    assert all(p.requires_grad for p in original.parameters())


@pytest.mark.parametrize("gradual", [False, True])
@pytest.mark.parametrize(
    ("method", "settings", "zeros"),
    [("sparse", {"sparsity": 0.75}, 0.75), ("structured-sparse", {"pattern": "1:4"}, 0.75)],
)
def test_zeros_stay_zeros(original, method, settings, zeros, gradual):
    made = compress(original, method, example=DATA[0].images, **settings)
    fixed = finetune(made, original, DATA, num_classes=5, config=CONFIG, gradual=gradual)
    for name in compression_history(made)[0]["layers"]:
        weight = fixed.get_submodule(name).weight
        assert float((weight == 0).float().mean()) == pytest.approx(zeros, abs=0.01)
        if not gradual:
            assert torch.equal(weight == 0, made.get_submodule(name).weight == 0)


def test_one_step_of_gradual_growth_ends_sparse(original):
    made = compress(original, "sparse", example=DATA[0].images, sparsity=0.8)
    fixed = finetune(made, original, DATA, num_classes=5, config=TrainConfig(steps=1, device="cpu"), gradual=True)
    assert float((fixed.conv2.weight == 0).float().mean()) == pytest.approx(0.8, abs=0.01)


def test_a_wrapped_network_keeps_its_zeros(original):
    made = compress(original, "sparse", example=DATA[0].images, sparsity=0.8)
    fixed = finetune(nn.DataParallel(made), original, DATA, num_classes=5, config=CONFIG)
    assert torch.equal(fixed.conv2.weight == 0, made.conv2.weight == 0)


def test_sparse_layers_that_became_chains_are_trained_whole(original):
    made = compress(original, "sparse,low-rank", example=DATA[0].images, sparsity=0.5, rank=3)
    fixed = finetune(made, original, DATA, num_classes=5, config=CONFIG)
    assert all(bool(p.isfinite().all()) for p in fixed.parameters())


def test_gradual_growth_follows_the_cubic_law(original):
    made = compress(original, "sparse", example=DATA[0].images, sparsity=0.8)
    task = FinetuneTask(
        copy.deepcopy(original), 5, copy.deepcopy(original), sparse={"conv2": {"sparsity": 0.8}}, gradual=20
    )
    for step in (0, 5, 10, 20, 25):
        task.before_step(step)
        share = min(step / 20, 1)
        expected = 0.8 * (1 - (1 - share) ** 3)
        zeros = float((task.model.conv2.weight == 0).float().mean())
        assert zeros == pytest.approx(expected, abs=0.002)
    assert compression_history(made)


def test_batchnorm_statistics_are_the_plain_mean(original):
    broken = copy.deepcopy(original)
    broken.bn1.running_mean += 3
    broken.bn1.running_var *= 9
    fixed = reestimate_batchnorm(broken, DATA)
    inputs = [original.conv1(b.images) for b in DATA]
    torch.testing.assert_close(fixed.bn1.running_mean, torch.stack([x.mean((0, 2, 3)) for x in inputs]).mean(0))
    variance = torch.stack([x.transpose(0, 1).flatten(1).var(1) for x in inputs]).mean(0)
    torch.testing.assert_close(fixed.bn1.running_var, variance, rtol=1e-4, atol=1e-6)
    assert fixed.bn1.momentum == original.bn1.momentum
    assert not fixed.training
    assert float(broken.bn1.running_mean.mean()) != float(fixed.bn1.running_mean.mean())
    assert isinstance(reestimate_batchnorm(nn.Linear(2, 2), []), nn.Linear)
    with pytest.raises(InvalidArgument, match="at least one batch"):
        reestimate_batchnorm(broken, [])


@pytest.mark.parametrize("first", [True, False])
def test_a_norm_that_only_trains_keeps_its_statistics(first):
    class Head(nn.Module):
        def __init__(self):
            super().__init__()
            norms = [nn.BatchNorm2d(1), nn.BatchNorm2d(1)]
            self.norms = nn.ModuleList(norms)
            self.side, self.main = norms if first else norms[::-1]

        def forward(self, x):
            return self.main(self.side(x) if self.training else x)

    model = Head().eval()
    model.side.running_mean.fill_(5)
    fixed = reestimate_batchnorm(model, DATA)
    assert fixed.side.running_mean.item() == 5
    means = torch.stack([b.images.mean() for b in DATA])
    torch.testing.assert_close(fixed.main.running_mean, means.mean().view(1))
    assert fixed.side.momentum == fixed.main.momentum == model.main.momentum


@pytest.mark.slow
def test_int8_training_comes_back_as_int8(original):
    made = compress(original, "int8", example=DATA[0].images, mode="qat")
    fixed = finetune(made, original, DATA[:2], num_classes=5, config=TrainConfig(steps=4, lr=0.01, device="cpu"))
    assert isinstance(fixed, Int8Model)
    assert accuracy(fixed) > accuracy(original) - 0.1
    with pytest.raises(InvalidArgument, match="cannot be trained"):
        finetune(fixed, original, DATA, num_classes=5)


def test_gradual_needs_something_sparse(original):
    with pytest.raises(InvalidArgument, match="only sparse layers"):
        finetune(original, original, DATA, num_classes=5, gradual=True)
    chained = compress(original, "prune-filters,sparse", example=DATA[0].images, keep=0.5, sparsity=0.5)
    with pytest.raises(InvalidArgument, match="original's weights"):
        finetune(chained, original, DATA, num_classes=5, gradual=True)


def test_frozen_statistics_stay_while_weights_learn(original):
    small = compress(original, "prune-filters", example=DATA[0].images, keep=0.5)
    made = finetune(small, original, DATA, num_classes=5, config=CONFIG, distill=1.0, freeze_norm=True)
    for name, before in small.state_dict().items():
        still = name.endswith(("running_mean", "running_var", "num_batches_tracked"))
        assert torch.equal(made.state_dict()[name], before) == still, name
