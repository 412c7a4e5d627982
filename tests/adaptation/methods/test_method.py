"""Both domains are normalised together or apart, and the running statistics stay those of the target."""

import torch
from torch import nn
from torch.testing import assert_close

from convsmith.adaptation.methods.method import extract_domain_features
from convsmith.data.batch import Batch, DomainBatch


def test_joint_and_separate_normalisation():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(4), nn.Linear(4, 3))
    one, two = torch.rand(6, 1, 2, 2), torch.rand(4, 1, 2, 2) + 3
    labels = torch.zeros(6, dtype=torch.long)
    batch = DomainBatch(Batch(one, labels, labels), Batch(two, labels[:4] - 1, labels[:4]))
    joint = extract_domain_features(model, batch, "joint")
    both = torch.cat([one, two]).flatten(1)
    expected = (both - both.mean(0)) / (both.var(0, correction=0) + 1e-5).sqrt()
    assert_close(torch.cat([joint.source_features, joint.target_features]), expected)
    model[1].reset_running_stats()
    apart = extract_domain_features(model, batch, "separate")
    for images, features in ((one, apart.source_features), (two, apart.target_features)):
        x = images.flatten(1)
        assert_close(features, (x - x.mean(0)) / (x.var(0, correction=0) + 1e-5).sqrt())
    assert_close(model[1].running_mean, 0.1 * two.flatten(1).mean(0))
    assert model[1].momentum == 0.1
    model[1].momentum = None  # the plain mean of all batches so far
    model[1].reset_running_stats()
    extract_domain_features(model, batch, "separate")
    assert_close(model[1].running_mean, two.flatten(1).mean(0))
