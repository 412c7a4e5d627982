import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from convsmith.data import from_arrays
from convsmith.data.batch import Batch
from convsmith.errors import InvalidArgument
from convsmith.training import (
    bootstrap_interval,
    classification_metrics,
    expected_calibration_error,
    predict,
    predict_split,
)
from convsmith.training.evaluation import BINS


def naive_ece(logits, labels):
    """Guo et al. 2017, eq. 3: equal bins of the top probability, closed on the left."""
    p = torch.softmax(logits.double(), 1)
    confidence, called = p.max(1)
    total = 0.0
    for b in range(BINS):
        inside = [
            i
            for i in range(len(labels))
            if b / BINS <= confidence[i] and (confidence[i] < (b + 1) / BINS or b == BINS - 1)
        ]
        if inside:
            accuracy = sum(float(called[i] == labels[i]) for i in inside) / len(inside)
            mean = sum(float(confidence[i]) for i in inside) / len(inside)
            total += len(inside) / len(labels) * abs(accuracy - mean)
    return total


def sample(count=60, classes=7, seed=0):
    g = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (count,), generator=g)
    logits = torch.randn(count, classes, generator=g) * 2
    logits[torch.arange(count), labels] += 1.5
    return logits, labels


@given(st.integers(2, 60), st.integers(2, 9), st.integers(0, 10**6))
def test_point_values_equal_the_naive_ones(count, classes, seed):
    logits, labels = sample(count, classes, seed)
    m = classification_metrics(logits, labels, resamples=20)
    called = logits.argmax(1)
    right = [int(called[i] == labels[i]) for i in range(count)]
    assert m.top1 == sum(right) / count
    for k in range(classes):
        own = [right[i] for i in range(count) if labels[i] == k]
        assert m.per_class[k] == (sum(own) / len(own) if own else None)
        bounds = m.per_class_intervals[k]
        assert (bounds is None) == (not own)
        assert bounds is None or bounds[0] < bounds[1]  # also where all are right, or none
        for j in range(classes):
            assert m.confusion[k][j] == sum(int(labels[i] == k and called[i] == j) for i in range(count))
    there = [a for a in m.per_class if a is not None]
    assert math.isclose(m.balanced, sum(there) / len(there), rel_tol=1e-6)
    if classes > 5:
        order = logits.argsort(1, descending=True)[:, :5]
        assert m.top5 == sum(int(labels[i] in order[i]) for i in range(count)) / count
    else:
        assert m.top5 is None
    assert math.isclose(m.ece, naive_ece(logits, labels), abs_tol=1e-5)
    assert math.isclose(m.ece, expected_calibration_error(logits, labels), abs_tol=1e-7)
    cross = -torch.log_softmax(logits.double(), 1)[torch.arange(count), labels].mean().item()
    assert math.isclose(m.cross_entropy, cross, rel_tol=1e-5)
    again = sum(n * abs(c - a) for n, c, a in m.calibration if n) / count
    assert math.isclose(m.ece, again, abs_tol=1e-5)
    assert sum(n for n, _, _ in m.calibration) == count
    json.dumps(m.to_json(), allow_nan=False)


def test_intervals_equal_a_naive_bootstrap():
    """The same law: 4000 resamples drawn one by one with plain indexing give the same percentiles within noise."""
    logits, labels = sample(80)
    m = classification_metrics(logits, labels, resamples=4000)
    rng = np.random.default_rng(99)
    correct = (logits.argmax(1) == labels).numpy()
    tops, eces, balanced = [], [], []
    for _ in range(4000):
        drawn = rng.integers(0, 80, 80)
        tops.append(correct[drawn].mean())
        present = [correct[drawn][labels.numpy()[drawn] == k] for k in range(7)]
        balanced.append(np.mean([c.mean() for c in present if len(c)]))
    for _ in range(400):
        drawn = torch.from_numpy(rng.integers(0, 80, 80))
        eces.append(expected_calibration_error(logits[drawn], labels[drawn]))
    np.testing.assert_allclose(m.intervals["top1"], np.percentile(tops, [2.5, 97.5]), atol=0.015)
    np.testing.assert_allclose(m.intervals["balanced"], np.percentile(balanced, [2.5, 97.5]), atol=0.015)
    bias = np.median(eces) - m.ece
    wanted = np.percentile(eces, [2.5, 97.5]) - np.array([2 * bias, bias])
    np.testing.assert_allclose(m.intervals["ece"], wanted.clip(min=0), atol=0.03)


@given(st.integers(2, 60), st.integers(2, 9), st.integers(0, 10**6), st.floats(0.01, 20))
def test_every_value_lies_within_its_interval(count, classes, seed, sharpness):
    logits, labels = sample(count, classes, seed)
    m = classification_metrics(sharpness * logits, labels, resamples=200)
    assert m.intervals["ece"][0] <= m.ece <= m.intervals["ece"][1]
    assert m.intervals["ece"][0] >= 0


def test_the_interval_of_the_calibration_error_covers_the_truth_more_often_than_plain_percentiles():
    """Two classes, confidence spread over [0.5, 1], right 5 % less often than it says: 60 samples of 500 images."""
    g = torch.Generator().manual_seed(0)
    hits = plain = 0
    for seed in range(60):
        confidence = 0.55 + 0.45 * torch.rand(500, generator=g)
        right = torch.rand(500, generator=g) < confidence - 0.05
        logits = torch.stack([torch.logit(confidence.clamp(max=1 - 1e-6)), torch.zeros(500)], 1)
        m = classification_metrics(logits, (~right).long(), seed, resamples=200)
        hits += m.intervals["ece"][0] <= 0.05 <= m.intervals["ece"][1]
        draws = torch.randint(500, (200, 500), generator=g)
        errors = [expected_calibration_error(logits[d], (~right[d]).long()) for d in draws[:40]]
        plain += np.percentile(errors, 2.5) <= 0.05 <= np.percentile(errors, 97.5)
    assert hits >= 50
    assert hits > plain


def test_intervals_cover_the_truth_about_as_often_as_they_say():
    """95 % intervals of a Bernoulli(0.8) mean over 100 images: between 89 and 99 % of 300 experiments."""
    g = torch.Generator().manual_seed(0)
    hits = 0
    for seed in range(300):
        values = (torch.rand(100, generator=g) < 0.8).float()
        low, high = bootstrap_interval(values, seed, resamples=400)
        hits += low <= 0.8 <= high
    assert 0.89 <= hits / 300 <= 0.99


def test_seeded_and_wider_with_fewer_images():
    logits, labels = sample(400)
    a, b = (classification_metrics(logits, labels, seed=s) for s in (0, 0))
    assert a == b
    assert a.intervals != classification_metrics(logits, labels, seed=1).intervals
    few = classification_metrics(logits[:40], labels[:40])
    width = [m.intervals["top1"][1] - m.intervals["top1"][0] for m in (few, a)]
    assert width[0] > 2 * width[1]
    assert a.intervals["top1"][0] <= a.top1 <= a.intervals["top1"][1]


def test_blocks_do_not_change_the_law():
    """More images than one block of counts holds: every block is drawn and used."""
    values = torch.arange(3_000_000) % 2
    low, high = bootstrap_interval(values.float(), resamples=8)
    assert 0.499 < low < high < 0.501


def test_degenerate_inputs():
    perfect = classification_metrics(torch.eye(3) * 50, torch.arange(3))
    assert perfect.intervals["top1"] == (1.0, 1.0)
    assert perfect.ece < 1e-6
    single = classification_metrics(torch.tensor([[1.0, 2.0]]), torch.tensor([0]))
    assert (single.top1, single.per_class) == (0.0, (0.0, None))
    half = classification_metrics(sample()[0].bfloat16(), sample()[1])
    assert half.count == 60


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (torch.zeros(0, 3), torch.zeros(0), "one label per image"),
        (torch.zeros(3, 3), torch.zeros(2), "one label per image"),
        (torch.zeros(3), torch.zeros(3), "one label per image"),
        (torch.zeros(3, 1), torch.zeros(3), "two classes"),
        (torch.zeros(2, 3), torch.tensor([0, 3]), "outside the model's classes"),
        (torch.zeros(2, 3), torch.tensor([0, -1]), "outside the model's classes"),
        (torch.full((2, 3), float("nan")), torch.tensor([0, 1]), "finite"),
    ],
)
def test_bad_inputs(logits, labels, message):
    with pytest.raises(InvalidArgument, match=message):
        classification_metrics(logits, labels)


def test_bad_bootstrap_input():
    with pytest.raises(InvalidArgument, match="one value per image"):
        bootstrap_interval(torch.zeros(0))
    for wrong in ({"seed": -1}, {"resamples": 0}):
        with pytest.raises(InvalidArgument, match="at least"):
            bootstrap_interval(torch.ones(3), **wrong)
        with pytest.raises(InvalidArgument, match="at least"):
            classification_metrics(*sample(), **wrong)


def test_predict_runs_in_eval_mode_and_puts_modes_back():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3))
    model[2].eval()
    model[0].train()
    data = [Batch(torch.randn(n, 1, 2, 2), torch.arange(n) % 3, torch.arange(n) + 10 * n) for n in (4, 3)]
    seen = []
    logits, labels, index = predict(model, data, "cpu", progress=lambda *a: seen.append(a[:2]))
    assert [m.training for m in model] == [True, True, False, True]
    model.eval()
    torch.testing.assert_close(logits, model(torch.cat([b.images for b in data])).detach(), rtol=1e-6, atol=1e-6)
    assert labels.tolist() == [0, 1, 2, 0, 0, 1, 2]
    assert index.tolist() == [40, 41, 42, 43, 30, 31, 32]
    assert seen == [(1, 2), (2, 2)]
    assert not logits.requires_grad


def test_predict_puts_modes_back_after_an_error():
    model = nn.Sequential(nn.Linear(2, 2)).train()
    with pytest.raises(RuntimeError):
        predict(model, [Batch(torch.randn(1, 3), torch.zeros(1), torch.zeros(1))])
    assert model.training
    assert predict(model, [])[0].shape == (0, 0)


def test_a_confidence_of_one_lies_in_the_last_bin():
    """Regression: torchmetrics gives it a sixteenth one, where gaps of opposite signs no longer cancel."""
    logits, labels = torch.tensor([[3.0, 0.0]] * 2 + [[60.0, 0.0]] * 2), torch.tensor([0, 0, 0, 1])
    assert float(logits.softmax(1).max()) == 1
    assert math.isclose(expected_calibration_error(logits, labels), naive_ece(logits, labels), rel_tol=1e-5)
    count, confidence, accuracy = classification_metrics(logits, labels, resamples=20).calibration[-1]
    assert math.isclose(classification_metrics(logits, labels, resamples=20).ece, confidence - accuracy, rel_tol=1e-5)
    assert count == 4


def test_networks_of_other_dtypes_predict():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double()
    images = torch.rand(5, 1, 2, 2)
    logits, _, _ = predict(model, [Batch(images, torch.zeros(5), torch.arange(5))])
    assert torch.equal(logits, model(images.double()).detach())


def test_splits_without_images_and_batches_of_none():
    model, split = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), from_arrays(np.zeros((3, 2, 2), np.float32))
    assert [len(part) for part in predict_split(model, split.subset([]), 4)] == [0, 0, 0]
    with pytest.raises(InvalidArgument, match="batch_size"):
        predict_split(model, split, 0)


def test_pairs_and_devices_that_are_not_there_are_refused():
    model, images = nn.Sequential(nn.Flatten(), nn.Linear(4, 3)), torch.rand(5, 1, 2, 2)
    with pytest.raises(InvalidArgument, match=r"convsmith\.data\.Batch"):
        predict(model, [(images, torch.zeros(5))])
    with pytest.raises(InvalidArgument, match="device"):
        predict(model, [Batch(images, torch.zeros(5), torch.arange(5))], "gpu")
