"""Class weights: scales, schedules, averages, and state that survives a restart."""

import pytest
import torch
from torch.testing import assert_close

from convsmith.adaptation.methods.weighting import (
    ClassWeights,
    WeightSettings,
    class_weights,
    scale_weights,
    total_probabilities,
)
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.inspection.modes import evaluating


def test_weights_are_the_mean_prediction_with_mean_one():
    p = torch.tensor([[0.7, 0.2, 0.1], [0.5, 0.1, 0.4]], requires_grad=True)
    w = class_weights(p)
    assert_close(w, torch.tensor([0.6, 0.15, 0.25]) * 3)
    assert not w.requires_grad
    assert_close(class_weights(p, scale="sum-one").sum(), torch.tensor(1.0))
    assert_close(class_weights(p, scale="max-one"), torch.tensor([1.0, 0.25, 0.25 / 0.6]))


@pytest.mark.parametrize("scale", ["mean-one", "sum-one", "max-one"])
def test_float64_in_is_float64_out(scale):
    p = torch.rand(7, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).softmax(1)
    w = class_weights(p, scale=scale)
    assert w.dtype == torch.float64
    mean = [sum(row[k] for row in p.tolist()) / 7 for k in range(3)]
    whole = {"mean-one": sum(mean) / 3, "sum-one": sum(mean), "max-one": max(mean)}[scale]
    assert_close(w, torch.tensor([m / whole for m in mean], dtype=torch.float64), rtol=1e-14, atol=0)
    assert class_weights(p.half()).dtype == torch.float32


def test_the_running_sum_has_mean_one_after_any_number_of_steps():
    weights = ClassWeights(4, WeightSettings(estimate="running-sum", average=0.0), 100)
    total = torch.zeros(4)
    for step in range(7):
        p = torch.rand(5, 4).softmax(1)
        total += p.sum(0)
        weights.take_batch(torch.rand(5, 4).softmax(1), p, step)
        assert_close(weights.weights.sum(), torch.tensor(4.0))
        assert_close(weights.weights, total * 4 / total.sum())


def test_whole_target_weights_are_due_every_n_steps_after_the_warmup():
    weights = ClassWeights(3, WeightSettings(every=10, warmup=0.2), 100)
    assert [t for t in range(45) if weights.due(t)] == [20, 30, 40]
    assert_close(weights.weights, torch.ones(3))


def test_the_average_forgets_the_old_estimate_by_its_share():
    weights = ClassWeights(2, WeightSettings(average=0.75, scale="sum-one"), 100)
    weights.take_target(torch.tensor([8.0, 2.0]), 10)
    assert_close(weights.weights, torch.tensor([0.8, 0.2]))  # the first estimate replaces the uniform start
    weights.take_target(torch.tensor([1.0, 4.0]), 5)
    assert_close(weights.weights, torch.tensor([0.75 * 0.8 + 0.25 * 0.2, 0.75 * 0.2 + 0.25 * 0.8]))


def test_batch_weights_use_both_domains_and_wait_for_the_warmup():
    weights = ClassWeights(2, WeightSettings(estimate="batch", warmup=0.03, scale="sum-one"), 100)
    source, target = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0], [0.5, 0.5], [0.5, 0.5]])
    weights.take_batch(source, target, 2)
    assert_close(weights.weights, torch.tensor([0.5, 0.5]))
    weights.take_batch(source[:, [0, 1]], target, 3)
    assert_close(weights.weights, torch.tensor([0.5, 0.5]))
    weights.take_batch(source, target[:1] * 0 + torch.tensor([[1.0, 0.0]]), 4)
    assert_close(weights.weights, torch.tensor([1.0, 0.0]))


def test_temperature_multiplies_the_logits():
    weights = ClassWeights(2, WeightSettings(inverse_temperature=10.0), 100)
    z = torch.tensor([[0.3, 0.1]], requires_grad=True)
    assert_close(weights.probabilities(z), (10 * z).softmax(1).detach())
    assert not weights.probabilities(z).requires_grad


def test_the_pass_over_the_target_is_in_eval_mode_and_leaves_the_modes():
    model = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.9), torch.nn.Linear(4, 3)
    )
    model[1].eval()  # a frozen norm layer stays frozen
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.rand(7, 1, 2, 2)
    none = torch.full((7,), -1)
    batches = [Batch(images[:4], none[:4], none[:4]), Batch(images[4:], none[4:], none[4:])]
    weights = ClassWeights(3, WeightSettings(), 100)
    total, count = total_probabilities(model, batches, weights)
    assert count == 7
    assert model.training
    assert not model[1].training
    assert model[2].training
    for k, v in model.state_dict().items():
        assert_close(v, before[k], rtol=0, atol=0)
    with evaluating(model), torch.no_grad():
        assert_close(total, model(images).softmax(1).double().sum(0))


def test_everything_it_knows_is_in_the_state_dict():
    a, b = (ClassWeights(3, WeightSettings(average=0.5), 100) for _ in range(2))
    a.take_target(torch.tensor([5.0, 3.0, 2.0]), 10)
    b.load_state_dict(a.state_dict())
    for w in (a, b):
        w.take_target(torch.tensor([1.0, 1.0, 8.0]), 10)
    assert_close(a.weights, b.weights, rtol=0, atol=0)
    assert int(b.updates) == 2


@pytest.mark.parametrize(
    ("call", "rule"),
    [
        (lambda: class_weights(torch.zeros(0, 3)), "at least one image"),
        (lambda: class_weights(torch.zeros(2, 3)), "need probabilities"),
        (lambda: class_weights(torch.full((2, 3), torch.nan)), "need probabilities"),
        (lambda: scale_weights(torch.ones(3), "sum"), "argument: scale"),
        (lambda: WeightSettings(estimate="epoch"), "argument: estimate"),
        (lambda: WeightSettings(every=0), "argument: every"),
        (lambda: WeightSettings(average=1.0), "below 1"),
        (lambda: WeightSettings(inverse_temperature=0.0), "above 0"),
    ],
)
def test_bad_input_is_one_clear_error(call, rule):
    with pytest.raises(InvalidArgument, match=rule):
        call()
