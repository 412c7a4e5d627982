"""ARPM's losses against loops, and its schedule: nothing of the target acts before the warm-up, all of it after."""

import math

import torch
from torch.nn import functional as F
from torch.testing import assert_close

from convsmith.adaptation.methods.arpm import ARPMSettings, alpha_power, neighbour_consistency
from convsmith.adaptation.methods.method import extract_domain_features
from tests.adaptation.test_methods import task_of
from tests.adaptation.worlds import loader, world


def test_alpha_power():
    z = torch.randn(5, 4, dtype=torch.float64)
    expected = sum(p**6 for row in z.softmax(1).tolist() for p in row) / 5
    assert_close(float(alpha_power(z, 6.0)), expected, rtol=0, atol=1e-14)
    assert_close(alpha_power(torch.zeros(2, 4), 6.0), torch.tensor(4.0**-5))


def test_consistency_is_the_loop_over_neighbours_of_neighbours():
    g = torch.Generator().manual_seed(0)
    memory = F.normalize(torch.randn(9, 3, generator=g, dtype=torch.float64), dim=1)
    remembered = torch.randn(9, 4, generator=g, dtype=torch.float64).softmax(1)
    p = torch.randn(3, 4, generator=g, dtype=torch.float64).softmax(1).requires_grad_()
    images = [1, 4, 7]

    def nearest(i, count):
        order = sorted(range(9), key=lambda j: -float(memory[i] @ memory[j]))
        assert order[0] == i
        return order[1 : count + 1]

    total = 0.0
    for row, image in enumerate(images):
        for j in (k for near in nearest(image, 2) for k in nearest(near, 3)):
            for c in range(4):
                s = float(remembered[j, c])
                total += 0.1 * s * (math.log(s) - float(p[row, c]))
    value = neighbour_consistency(memory[images], p, memory, remembered, 2, 3)
    assert_close(float(value), total / 3, rtol=0, atol=1e-12)
    value.backward()
    assert bool((p.grad < 0).all())  # agreeing more is always better


def test_half_precision_changes_no_neighbour():
    g = torch.Generator().manual_seed(0)
    near = F.normalize(torch.randn(1, 16, generator=g) + 0.02 * torch.randn(40, 16, generator=g), dim=1)
    remembered, p = torch.randn(40, 4, generator=g).softmax(1), torch.randn(5, 4, generator=g).softmax(1)
    expected = neighbour_consistency(near[:5], p, near, remembered)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(neighbour_consistency(near[:5], p, near, remembered), expected)


def test_the_defaults_are_the_authors():
    s = ARPMSettings()
    assert (s.alpha, s.power, s.consistency, s.label_smoothing, s.rho) == (6.0, 0.3, 1.0, 0.1, 5.0)
    assert (s.neighbours, s.second_neighbours) == (4, 3)


def test_the_target_acts_from_the_end_of_the_warmup_at_full_strength():
    source, target = world()
    task = task_of("arpm", 12, source, target, warmup=0.5, updates=1)
    batch = next(loader(source, target).epoch(0))
    before = task(batch, 5)
    assert_close(before.total, before.parts["classification"])
    # smoothed cross-entropy over the summed weights
    logits = extract_domain_features(task.model, batch).source_logits
    smooth = F.cross_entropy(logits, batch.source.labels, label_smoothing=0.1)
    assert_close(before.total, smooth * len(logits) / (len(logits) + 1e-5))
    task.before_step(6)
    after = task(batch, 6)
    expected = after.parts["classification"] - 0.3 * after.parts["power"] + after.parts["consistency"]
    assert_close(after.total, expected)
    # the batch replaced its rows of the memory
    rows = torch.searchsorted(task.target_index, batch.target.index)
    assert_close(
        task.memory_probabilities[rows], extract_domain_features(task.model, batch).target_logits.softmax(1).detach()
    )
